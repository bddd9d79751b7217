"""The arms against each other: the frontier, and what they keep at the same downstream accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from experiments.knowledge_forgetting.analysis.labels import Points, label_lines
from experiments.knowledge_forgetting.analysis.matched import MOSTLY_KEPT, Level
from experiments.knowledge_forgetting.analysis.style import LOOKS, look, words
from experiments.knowledge_forgetting.analysis.summary import GOAL_KEPT, PointSummary, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE: Final = 4  # panels beside each other


def frontier(summary: Summary) -> Figure:
    """What is kept against what is learnt: one line per arm through its learning rates, each seed a faint point.

    Where rates that are too high have cost most of the knowledge, a panel of its own shows all, the large one the rest.
    """
    shown = [point for point in summary.frontier if point.kept.value >= MOSTLY_KEPT]
    is_cut = 0 < len(shown) < len(summary.frontier)
    figure = new_figure(13.0 if is_cut else 9.0, 6.2)
    figure.suptitle("Each point is a learning rate: the mean over seeds, faint the single seeds", fontsize=10)
    panels = figure.subplots(1, 2, width_ratios=(5, 2)) if is_cut else [figure.subplots()]
    for axes in panels:
        _frontier_lines(axes, summary)
    if is_cut:
        panels[1].set_title("all learning rates", fontsize=10)
        _zoom(panels[0], _seeds(shown))
    _goal_corner(panels[0], summary)
    _frontier_labels(figure, panels[0], summary, shown if is_cut else summary.frontier)
    return figure


def _frontier_lines(axes: Axes, summary: Summary) -> None:
    axes.axhline(100, color=GREY, linestyle=":", linewidth=1)
    axes.plot(100 * summary.base.downstream.value, 100, "*", color="black", markersize=15, linestyle="none")
    for arm, points in lines_of(summary.frontier).items():
        faint = {"color": look(arm).colour, "alpha": 0.3, "markersize": 3.5, "linestyle": "none"}
        axes.plot(*zip(*_seeds(points), strict=True), marker=look(arm).marker, **faint)
        line = percents(points, "downstream"), percents(points, "kept")
        axes.plot(*line, **line_style(arm), markeredgecolor="white", markeredgewidth=0.6)
    axes.set_xlabel(DOWNSTREAM)
    axes.set_ylabel(KEPT)
    axes.margins(x=0.06, y=0.08)
    axes.grid(alpha=0.25)


def _seeds(points: Sequence[PointSummary]) -> Points:
    return [(100 * p.downstream.by_seed[s], 100 * p.kept.by_seed[s]) for p in points for s in p.kept.by_seed]


def _zoom(axes: Axes, points: Points) -> None:
    """Shows these points, and the line at 100 %, with some room around them."""
    across, along = zip(*points, strict=True)
    left, right, bottom, top = min(across), max(across), min(along), max(100.0, *along)
    axes.set_xlim(left - 0.04 * (right - left), right + 0.04 * (right - left))
    axes.set_ylim(bottom - 0.04 * (top - bottom), top + 0.08 * (top - bottom))


def _frontier_labels(figure: Figure, axes: Axes, summary: Summary, shown: Sequence[PointSummary]) -> None:
    (left, right), base = axes.get_xlim(), 100 * summary.base.downstream.value
    lines = {words("base"): [(base, 100.0)]} if left < base < right else {}
    for arm, points in lines_of(shown).items():
        lines[words(arm)] = list(zip(percents(points, "downstream"), percents(points, "kept"), strict=True))
    colours = {words(arm): look(arm).dark for arm in LOOKS}
    marks = [(float(x), 100.0) for x in range(0, 101)] + _seeds(shown)
    label_lines(figure, axes, lines, colours, marks)


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
