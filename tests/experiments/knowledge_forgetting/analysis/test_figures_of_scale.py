"""Figures are drawn for what has been run, show something, and carry the digest of what they show."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from experiments.knowledge_forgetting.analysis import figures as figures_of_scale
from experiments.knowledge_forgetting.analysis.drawing import new_figure, sign
from experiments.knowledge_forgetting.analysis.figures import digest, digest_of, draw_all, figures
from experiments.knowledge_forgetting.analysis.frontier_figures import frontier
from experiments.knowledge_forgetting.analysis.labels import label_lines
from experiments.knowledge_forgetting.analysis.study_figures import epochs, of_epochs
from experiments.knowledge_forgetting.analysis.summarise import summarise
from tests.experiments.knowledge_forgetting.analysis.conftest import Grid

ALL = {"frontier.png", "matched.png", "rows.png", "imbalance.png", "ablations_loramoe_paper.png"}


@pytest.mark.slow
def test_every_study_has_its_figure(whole):
    summary = summarise(whole.read(), draws=20)
    draw_all(summary, whole.folder)
    assert {file.name for file in whole.folder.glob("*.png")} == ALL
    for file in whole.folder.glob("*.png"):
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L"))
        assert 0.01 < (pixels < 200).mean() < 0.5, file.name
        assert min(pixels.shape) > 400
        assert digest_of(file) == digest(summary)


def test_every_figure_says_of_which_model_it_is(grid, monkeypatch):
    signed: list[str] = []
    monkeypatch.setattr(figures_of_scale, "sign", lambda figure, text: signed.append(text))
    grid.add("full", 1.0, 0.9, 0.5)
    draw_all(summarise(grid.read(), draws=20), grid.folder)
    assert signed == ["Base model: made_up."] * len(list(grid.folder.glob("*.png")))


def test_what_a_figure_is_signed_with_stands_below_all_else(tmp_path):
    figure = new_figure(4.0, 3.0)
    figure.subplots().plot([0, 1], [0, 1], label="a line")
    figure.legend(loc="outside lower center")
    sign(figure, "Base model: made_up.")
    figure.savefig(tmp_path / "signed.png", bbox_inches="tight")
    (text,) = figure.texts
    others = [one.get_window_extent().y0 for one in figure.legends] + [figure.axes[0].get_tightbbox().y0]
    assert text.get_window_extent().y1 < min(others)


def test_what_has_not_been_run_has_no_figure(grid):
    assert figures(summarise(grid.read(), draws=20)) == {}
    grid.add("lora_mlp", 1e-3, 0.9, 0.8)
    summary = summarise(grid.read(), draws=20)
    draw_all(summary, grid.folder)
    assert {file.name for file in grid.folder.glob("*.png")} == {"frontier.png", "matched.png"}
    assert digest_of(grid.folder / "rows.png") is None


def test_several_epochs_are_drawn_beside_their_arm_as_it_is(grid):
    for arm, changes, downstream in (("full", {}, 0.6), ("full", {"epochs": 2}, 0.8), ("lora_mlp", {}, 0.5)):
        for rate, facts in ((1e-3, 0.95), (2e-3, 0.9)):
            grid.add(arm, rate, facts, downstream, changes=changes)
    summary = summarise(grid.read(), draws=20)
    assert [(recipe.arm, recipe.changes) for recipe in of_epochs(summary)] == [("full", {}), ("full", {"epochs": 2})]
    assert "epochs.png" in figures(summary)
    (axes,) = epochs(summary).axes
    one, two = axes.get_lines()[:2]
    assert (list(one.get_xdata()), list(two.get_xdata())) == (pytest.approx([60, 60]), pytest.approx([80, 80]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "full fine-tuning,\n1 epoch (1 seed)",
        "full fine-tuning,\n2 epochs (1 seed)",
    ]


def test_rates_that_were_too_high_do_not_stretch_the_figure_of_epochs(grid):
    for rate, facts, downstream in ((1e-3, 0.95, 0.6), (2e-3, 0.9, 0.7), (4e-3, 0.1, 0.05)):
        for changes in ({}, {"epochs": 2}):
            grid.add("full", rate, facts, downstream, changes=changes)
    (axes,) = epochs(summarise(grid.read(), draws=200)).axes
    left, right = axes.get_xlim()
    assert 35 < left < 60
    assert 70 < right < 90


def test_epochs_are_drawn_though_every_rate_was_too_high(grid):
    for changes in ({}, {"epochs": 2}):
        grid.add("full", 1.0, 0.1, 0.5, changes=changes)
    (axes,) = epochs(summarise(grid.read(), draws=20)).axes
    assert axes.get_xlim()[0] < 50 < axes.get_xlim()[1]


def test_epochs_tell_how_many_seeds_their_rates_have(grid):
    grid.add("full", 1.0, 0.9, 0.5)
    for rate, seeds in ((1.0, (0,)), (2.0, (0, 1))):
        for seed in seeds:
            grid.add("full", rate, 0.9, 0.6, seed=seed, changes={"epochs": 2})
    (axes,) = epochs(summarise(grid.read(), draws=20)).axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["full fine-tuning,\n1 epoch (1 seed)", "full fine-tuning,\n2 epochs (1 to 2 seeds)"]


def test_epochs_that_know_more_than_the_base_are_inside_the_axes(grid):
    grid.add("base", 0.0, 0.5, 0.2, rows=0)
    for changes in ({}, {"epochs": 2}):
        for rate, facts in ((1e-3, 0.55), (2e-3, 0.45)):
            grid.add("full", rate, facts, 0.6, changes=changes)
    summary = summarise(grid.read(), draws=20)
    (axes,) = epochs(summary).axes
    bars = [at.kept.high for recipe in of_epochs(summary) for at in recipe.at_rates]
    assert max(bars) > 1.1
    assert axes.get_ylim() == (75, pytest.approx(100 * max(bars) + 1))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_names_neither_meet_nor_leave_the_axes(count):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = {f"line of number {n}": [(0.0, 1.0 - n / 20), (1.0, 0.5 - n / 20)] for n in range(count)}
    for line in lines.values():
        axes.plot(*zip(*line, strict=True))
    label_lines(figure, axes, lines, dict.fromkeys(lines, "black"), [(0.5, 0.5)])
    figure.canvas.draw()
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(text) for text in axes.texts]
    frame = axes.get_window_extent()
    assert [text.get_text() for text in axes.texts] == list(lines)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_rates_that_were_too_high_stand_in_a_panel_beside_the_others(grid):
    grid.add("full", 1.0, 0.9, 0.5)
    grid.add("full", 2.0, 0.8, 0.6)
    assert len(frontier(summarise(grid.read(), draws=20)).axes) == 1
    grid.add("full", 3.0, 0.1, 0.3)
    large, whole = frontier(summarise(grid.read(), draws=20)).axes
    assert large.get_ylim()[0] > 70
    assert whole.get_ylim()[0] < 10


def test_who_knows_more_than_the_base_stands_within_the_large_panel(tmp_path):
    grid = Grid(tmp_path)
    grid.add("base", 0.0, 0.8, 0.2, rows=0)
    for rate, (facts, tasks) in enumerate([(0.96, 0.5), (0.8, 0.6), (0.1, 0.3)], 1):
        grid.add("full", float(rate), facts, tasks)
    large, _ = frontier(summarise(grid.read(), draws=20)).axes
    bottom, top = large.get_ylim()
    assert 90 < bottom < 100
    assert top > 120
