"""The figures show the numbers, with the target dashed and colours that diverge around an even gate."""

from __future__ import annotations

import numpy as np
import pytest

from loramoe.analysis.plots import by_decoder_layer, plot_experts, plot_groups

NAMES = {0: "tasks", 1: "knowledge", 2: "code"}


def test_means_over_the_linear_layers_of_a_decoder_layer():
    layers = ("model.layers.7.up_proj", "model.layers.7.down_proj", "lm_head")
    values = np.array([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
    np.testing.assert_allclose(by_decoder_layer(values, layers), [[2, 5], [3, 6]])


def test_groups_are_lines_around_the_even_share_with_dashed_targets(make_stats):
    stats = make_stats(expert_types=(1, 0, 0, 0), own=0.8)
    figure = plot_groups(stats, np.array([[0.7, 0.3], [0.6, 0.4]]), NAMES, "the title")
    tasks, knowledge = figure.axes
    assert (tasks.get_title(), knowledge.get_title()) == ("tasks experts", "knowledge experts")
    lines = {line.get_label(): line for line in tasks.lines}
    np.testing.assert_allclose(lines["tasks samples"].get_ydata(), [5, 5, 5])  # 80 % of weight, 75 % of the experts
    np.testing.assert_allclose(lines["knowledge samples"].get_ydata(), [-55, -55, -55])
    assert lines["target, tasks"].get_ydata()[0] == pytest.approx(-5)
    assert {lines[f"target, {name}"].get_linestyle() for name in ("tasks", "knowledge")} == {"--"}
    assert figure.get_suptitle() == "the title"


def test_experts_diverge_around_an_even_gate(make_stats):
    stats = make_stats(task_types=(0, 1, 2), expert_types=(2, 0, 1), own=0.5)
    figure = plot_experts(stats, NAMES)
    *panels, _ = figure.axes
    assert [panel.get_title() for panel in panels] == ["tasks samples", "knowledge samples", "code samples"]
    image = panels[0].images[0]
    low, high = image.get_clim()
    assert low == -high < 0
    np.testing.assert_allclose(image.get_array()[0], [50 - 100 / 3, 25 - 100 / 3, 25 - 100 / 3])  # by type
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "2", "0"]
    assert "+16.7" in {text.get_text() for text in panels[0].texts}


def test_many_cells_have_no_numbers_and_many_layers_few_ticks(make_stats):
    figure = plot_experts(make_stats(layers=48), NAMES)
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_yticks()) <= 16
