"""The pictures show the numbers, and can be told apart without colour."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from loramoe.report.pictures import _COLOURS, dash, draw_all
from tests.report.reports import make_measures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are saved, by the names of their files."""
    figures: dict[str, Figure] = {}
    save = Figure.savefig

    def keep(self: Figure, file: Path, **options: object) -> None:
        figures[file.name] = self
        save(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_pictures_hold_the_numbers(drawn: dict[str, Figure], tmp_path: Path):
    measures = make_measures()
    pictures = draw_all(measures, tmp_path)
    assert [picture.file for picture in pictures] == list(drawn)
    assert {picture.section for picture in pictures} == {"gates", "shares", "entropy", "variation"}
    assert all(picture.alt and imread(tmp_path / picture.file).shape[0] > 100 for picture in pictures)
    for t in range(2):
        axes = drawn[f"experts_gates_type{t}.png"].axes[0]
        assert axes.images[0].get_array().tolist() == measures.gate_TNE[t]
        assert axes.images[0].get_clim()[0] == 0
        assert [text.get_text() for text in axes.texts][:2] == [
            f"{gate:.2f}".removeprefix("0") for gate in measures.gate_TNE[t][0][:2]
        ]
    limits = {drawn[f"experts_gates_type{t}.png"].axes[0].images[0].get_clim() for t in range(2)}
    assert len(limits) == 1
    heights = [bar.get_height() for bar in drawn["experts_shares.png"].axes[0].patches]
    assert heights == pytest.approx([measures.share_TG[t][g] for g in range(2) for t in range(2)])
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn["experts_shares_by_layer.png"].axes[0].lines}
    assert lines == {
        f"rows of type {t} → experts of type 1": [share_G[1] for share_G in measures.share_TNG[t]] for t in range(2)
    }
    spread = {line.get_label(): list(line.get_ydata()) for line in drawn["experts_variation.png"].axes[0].lines}
    assert spread["all rows"] == measures.variation_N
    assert spread["rows of type 1"] == measures.variation_TN[1]
    entropy = {line.get_label(): list(line.get_ydata()) for line in drawn["experts_entropy.png"].axes[0].lines}
    assert entropy["type 1, each token's gates"] == measures.token_entropy_TN[1]
    assert entropy["type 0, mean gates"] == measures.load_entropy_TN[0]


def test_lines_and_bars_differ_without_colour(drawn: dict[str, Figure], tmp_path: Path):
    draw_all(make_measures(task_types=(0, 1, 2), expert_types=(0, 1, 2, 2)), tmp_path)
    for name in ("experts_shares_by_layer.png", "experts_entropy.png", "experts_variation.png"):
        lines = drawn[name].axes[0].lines
        looks = {(line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == len(lines) > 1
        assert all(line.get_marker() != "None" for line in lines)
    hatches = {bar.get_hatch() for bar in drawn["experts_shares.png"].axes[0].patches}
    assert len(hatches) == 3


def test_no_two_dashes_are_alike():
    dashes = [dash(d) for d in range(12)]
    assert len(set(dashes)) == 12
    assert all(len(pattern) % 2 == 0 for _, pattern in dashes[4:])  # else matplotlib would turn strokes and gaps round


@pytest.mark.slow
def test_many_layers_experts_and_types(drawn: dict[str, Figure], tmp_path: Path):
    """Labels thin out, numbers in cells are left out, and there are more types than colours."""
    types = tuple(range(len(_COLOURS) + 1))
    draw_all(make_measures(task_types=types, expert_types=types * 3, layers=40), tmp_path)
    axes = drawn["experts_gates_type7.png"].axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) <= 16
    assert len(axes.get_yticks()) <= 16


def test_a_gate_of_one_is_written_as_one(drawn: dict[str, Figure], tmp_path: Path):
    measures = make_measures()
    measures.gate_TNE[0][0][:] = [1.0, 0.0, 0.0, 0.0]
    draw_all(measures, tmp_path)
    assert [text.get_text() for text in drawn["experts_gates_type0.png"].axes[0].texts][:2] == ["1.00", ".00"]
