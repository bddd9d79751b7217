"""The arms against each other: the frontier, and what they keep at the same downstream accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from experiments.knowledge_forgetting.analysis.drawing import (
    DOWNSTREAM,
    GREY,
    KEPT,
    line_style,
    lines_of,
    new_figure,
    percents,
)
from experiments.knowledge_forgetting.analysis.labels import label_lines
from experiments.knowledge_forgetting.analysis.matched import Level
from experiments.knowledge_forgetting.analysis.style import look, words
from experiments.knowledge_forgetting.analysis.summary import GOAL_KEPT, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE: Final = 4  # panels beside each other


def frontier(summary: Summary) -> Figure:
    """What is kept against what is learnt: one line per arm through its learning rates, each seed a faint point."""
    figure = new_figure(9.0, 6.2)
    axes = figure.subplots()
    base = summary.base
    axes.axhline(100, color=GREY, linestyle=":", linewidth=1)
    axes.plot(100 * base.downstream.value, 100, "*", color="black", markersize=15, linestyle="none")
    lines = {words("base"): [(100 * base.downstream.value, 100.0)]}
    colours, marks = {words("base"): "black"}, [(float(x), 100.0) for x in range(0, 101)]
    for arm, points in lines_of(summary.frontier).items():
        seeds = [(100 * p.downstream.by_seed[s], 100 * p.kept.by_seed[s]) for p in points for s in p.kept.by_seed]
        axes.plot(*zip(*seeds, strict=True), look(arm).marker, color=look(arm).colour, alpha=0.3, markersize=3.5)
        marks += seeds
        line = list(zip(percents(points, "downstream"), percents(points, "kept"), strict=True))
        axes.plot(*zip(*line, strict=True), **line_style(arm), markeredgecolor="white", markeredgewidth=0.6)
        lines[words(arm)], colours[words(arm)] = line, look(arm).dark
    axes.set_xlabel(DOWNSTREAM)
    axes.set_ylabel(KEPT)
    axes.margins(x=0.06, y=0.08)
    axes.grid(alpha=0.25)
    _goal_corner(axes, summary)
    axes.set_title("Each point is a learning rate: the mean over seeds, faint the single seeds", fontsize=10)
    label_lines(figure, axes, lines, colours, marks)
    return figure


def _goal_corner(axes: Axes, summary: Summary) -> None:
    full = next((level for level in summary.levels if level.name == "full"), None)
    if full is None:
        return
    left, right = 100 * full.downstream.value, axes.get_xlim()[1]
    bottom, top = axes.get_ylim()
    axes.set_xlim(right=right)
    axes.set_ylim(bottom, top)
    axes.fill_between([left, right], 100 * GOAL_KEPT, top, facecolor="none", edgecolor="#C0C0C0", hatch="////", lw=0)
    axes.axvline(left, color=GREY, linestyle=":", linewidth=1)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text((left + right) / 2, (100 * GOAL_KEPT + top) / 2, "goal", ha="center", va="center", fontsize=9, bbox=white)


def matched(summary: Summary) -> Figure:
    """One panel for each downstream accuracy: what each arm keeps there, with its interval."""
    levels, arms = summary.levels, list(summary.levels[0].kept)
    high = math.ceil(len(levels) / _WIDE)
    figure = new_figure(11.0, 0.6 + high * (0.9 + 0.3 * len(arms)))
    panels = figure.subplots(high, min(_WIDE, len(levels)), sharex=True, sharey=True, squeeze=False)
    for axes, level in zip(panels.flat, levels, strict=False):
        _matched_panel(axes, level, arms)
    for axes in list(panels.flat)[len(levels) :]:
        axes.set_axis_off()
    for axes in list(panels.flat)[: len(levels)][-panels.shape[1] :]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"{KEPT}, at the downstream accuracy above each panel; bars: 95 % intervals", fontsize=10)
    return figure


def _matched_panel(axes: Axes, level: Level, arms: list[str]) -> None:
    for y, arm in enumerate(arms):
        reading, colour = level.kept[arm], look(arm).colour
        if reading is None:
            across = axes.get_yaxis_transform()  # x in shares of the width
            axes.text(0.03, y, "not reached", transform=across, va="center", fontsize=8, color=GREY, style="italic")
            continue
        value = reading.value
        axes.plot([100 * value.low, 100 * value.high], [y, y], "|-", color=colour, linewidth=2, markersize=9)
        axes.plot(
            100 * value.value,
            y,
            look(arm).marker,
            color=colour,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
        if reading.is_bound:
            axes.text(100 * value.low, y, "at least  ", ha="right", va="center", fontsize=8)
    of = "downstream" if level.name == "fixed" else f"as {words(level.name)}, tuned:\n"
    axes.set_title(f"{of} {100 * level.downstream.value:.1f} %", fontsize=8)
    axes.set_yticks(range(len(arms)), [words(arm) for arm in arms], fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(alpha=0.25)
