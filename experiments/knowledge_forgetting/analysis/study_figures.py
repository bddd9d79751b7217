"""Further studies: more and fewer rows, one setting changed at a time, and what the experts do."""

from __future__ import annotations

import itertools
import math
import textwrap
from typing import TYPE_CHECKING, Final

from experiments.knowledge_forgetting.analysis import studies
from experiments.knowledge_forgetting.analysis.drawing import (
    DOWNSTREAM,
    GREY,
    KEPT,
    line_style,
    lines_of,
    new_figure,
    percents,
)
from experiments.knowledge_forgetting.analysis.matched import MOSTLY_KEPT
from experiments.knowledge_forgetting.analysis.recipe_tables import setting_text
from experiments.knowledge_forgetting.analysis.recipes import RecipeSummary
from experiments.knowledge_forgetting.analysis.style import LOOKS, look, rank, words
from experiments.knowledge_forgetting.analysis.summary import (
    GOAL_KEPT,
    AblationSummary,
    Measured,
    PointSummary,
    Summary,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE: Final = 5  # settings beside each other
_DASHES: Final = ("-", ":", "--", "-.")
_SERIES: Final = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":"), ("#CC79A7", "v", "-."))


def rows(summary: Summary) -> Figure:
    """What is kept, and what is learnt, against the number of rows: below each other an arm's learning rates."""
    rates: dict[str, list[list[PointSummary]]] = {}
    for line in summary.rows_study:
        rates.setdefault(line[0].arm, []).append(line)
    high = max(len(lines) for lines in rates.values())
    figure = new_figure(11.0, 3.6 * high + 0.4)
    panels = figure.subplots(high, 2, sharex=True, sharey="col", squeeze=False)
    for n, (left, right) in enumerate(panels):
        lines = [of_arm[n] for of_arm in rates.values() if n < len(of_arm)]
        for axes, name, title in ((left, "kept", KEPT), (right, "downstream", DOWNSTREAM)):
            for line in lines:
                _rows_line(axes, line, name)
            _rows_axes(axes, title, sorted({point.rows for line in summary.rows_study for point in line}))
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, handlelength=4, frameon=False)
    for axes in panels[-1]:
        axes.set_xlabel("training rows (logarithmic); bands: 95 % intervals")
    return figure


def _rows_line(axes: Axes, line: list[PointSummary], name: str) -> None:
    rows, style = [point.rows for point in line], line_style(line[0].arm)
    measured = [getattr(point, name) for point in line]
    low, high = [100 * m.low for m in measured], [100 * m.high for m in measured]
    axes.fill_between(rows, low, high, color=style["color"], alpha=0.15, linewidth=0)
    label = f"{words(line[0].arm)},\nlearning rate {line[0].learning_rate:g}"
    axes.plot(rows, percents(line, name), **style, markeredgecolor="white", markeredgewidth=0.6, label=label)


def _rows_axes(axes: Axes, title: str, ticks: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylabel(title)
    axes.grid(alpha=0.25)


def ablations(summary: Summary, arm: str) -> Figure:
    """One column for each setting: what is kept above, what is learnt below; a line for each learning rate."""
    found: dict[str, list[AblationSummary]] = {}
    for ablation in summary.ablations:
        if ablation.arm == arm:
            found.setdefault(ablation.key, []).append(ablation)
    wide, bands = min(_WIDE, len(found)), math.ceil(len(found) / _WIDE)
    figure = new_figure(max(7.0, 0.8 + 2.3 * wide), 0.8 + 4.0 * bands)
    panels = figure.subplots(2 * bands, wide, sharey="row", squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for n, (key, series) in enumerate(found.items()):
        band, column = divmod(n, _WIDE)
        above, below = panels[2 * band][column], panels[2 * band + 1][column]
        _ablation_panel(above, series, "kept", KEPT if column == 0 else "")
        _ablation_panel(below, series, "downstream", DOWNSTREAM if column == 0 else "")
        above.set_title(key, fontsize=10)
        above.tick_params(labelbottom=False)
    handles = {label: handle for handle, label in zip(*panels[0][0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, handlelength=4)
    figure.suptitle(
        f"{words(arm)}: one setting changed at a time, test items (◆: as it is; bars: 95 % intervals)", fontsize=10
    )
    return figure


def _ablation_panel(axes: Axes, series: list[AblationSummary], name: str, title: str) -> None:
    axes.set_axis_on()
    texts = {setting_text(s): studies.order(s.value) for ablation in series for s in ablation.settings}
    places = {text: x for x, text in enumerate(sorted(texts, key=lambda text: texts[text]))}
    for n, (ablation, (colour, marker, dash)) in enumerate(zip(series, itertools.cycle(_SERIES), strict=False)):
        shift = 0.16 * (n - (len(series) - 1) / 2)
        xs = [places[setting_text(setting)] + shift for setting in ablation.settings]
        measured: list[Measured] = [getattr(setting.point, name) for setting in ablation.settings]
        label = f"learning rate {ablation.learning_rate:g}"
        axes.vlines(xs, [100 * m.low for m in measured], [100 * m.high for m in measured], color=colour, linewidth=1.5)
        axes.plot(xs, [100 * m.value for m in measured], marker, ls=dash, color=colour, lw=1, ms=5, label=label)
        for x, setting, one in zip(xs, ablation.settings, measured, strict=True):
            if setting.is_own:
                axes.plot(x, 100 * one.value, "D", color="black", markersize=6, zorder=3)
                axes.axhline(100 * one.value, color=colour, linestyle=":", linewidth=0.9)
    axes.set_xticks(range(len(places)), [_short(text) for text in places], fontsize=7)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylabel(textwrap.fill(title, 30), fontsize=8)
    axes.grid(axis="y", alpha=0.25)


def _short(text: str) -> str:
    """In short lines, for below an axis."""
    return textwrap.fill(text.replace("_proj", "").replace(" (own)", ""), 12)


def imbalance(summary: Summary) -> Figure:
    """Coefficient of variation against the learning rate, and the groups' shares at the tuned one."""
    figure = new_figure(11.0, 4.4)
    left, right = figure.subplots(1, 2)
    for arm, points in lines_of(point for point in summary.frontier if point.variation).items():
        measured = [point.variation for point in points if point.variation]
        rates = [point.learning_rate for point in points]
        left.plot(rates, [one.value for one in measured], **line_style(arm), label=words(arm))
        seeds = [(rate, value) for rate, one in zip(rates, measured, strict=True) for value in one.by_seed.values()]
        left.plot(*zip(*seeds, strict=True), look(arm).marker, color=look(arm).colour, alpha=0.3, markersize=3.5)
    left.set_xscale("log")
    rates = sorted({point.learning_rate for point in summary.frontier if point.variation})
    left.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    left.set_xticks([], minor=True)
    left.set_ylim(bottom=0)
    left.set_xlabel("learning rate (logarithmic)")
    left.set_ylabel("coefficient of variation of the gate weight")
    left.grid(alpha=0.25)
    left.legend(fontsize=8, handlelength=4)
    tuned = [one.point for one in summary.tuned if one.point and one.point.share]
    if tuned:
        _shares(right, tuned)
    else:
        right.set_axis_off()
    return figure


def of_epochs(summary: Summary) -> list[RecipeSummary]:
    """Recipes that go through the rows several times, and their arms as they are, by arm and number of epochs."""
    ranked = summary.recipes[0].ranked if summary.recipes else []
    arms = {recipe.arm for recipe in ranked if "epochs" in recipe.changes}
    shown = [one for one in ranked if one.arm in arms and ("epochs" in one.changes or not one.changes)]
    return sorted(shown, key=lambda one: (rank(one.arm), one.changes.get("epochs", 1), len(one.changes)))


def epochs(summary: Summary) -> Figure:
    """What is kept against what is learnt, in one epoch (full marks) and in several (hollow ones)."""
    figure = new_figure(11.0, 5.8)
    axes = figure.subplots()
    dashes = {arm: itertools.cycle(_DASHES) for arm in LOOKS}
    for recipe in of_epochs(summary):
        kept, learnt = ([getattr(at, name) for at in recipe.at_rates] for name in ("kept", "downstream"))
        x, y = [100 * one.value for one in learnt], [100 * one.value for one in kept]
        style = line_style(recipe.arm) | {"linestyle": next(dashes[recipe.arm])}
        if recipe.changes:
            style |= {"markerfacecolor": "white"}
        axes.vlines(x, [100 * one.low for one in kept], [100 * one.high for one in kept], color=style["color"], lw=1)
        axes.hlines(
            y, [100 * one.low for one in learnt], [100 * one.high for one in learnt], color=style["color"], lw=1
        )
        axes.plot(x, y, **style, label=_epochs_name(recipe))
    axes.axhline(100 * GOAL_KEPT, color=GREY, linestyle=":", linewidth=1)
    every = [at for recipe in of_epochs(summary) for at in recipe.at_rates]
    shown = [at for at in every if at.kept.value >= MOSTLY_KEPT] or every
    axes.set_xlim(
        *_with_room(100 * min(at.downstream.low for at in shown), 100 * max(at.downstream.high for at in shown))
    )
    axes.set_ylim(100 * MOSTLY_KEPT, max(101.0, 100 * max(at.kept.high for at in shown) + 1))
    axes.set_xlabel(f"{DOWNSTREAM}; each point is a learning rate, bars: 95 % intervals")
    axes.set_ylabel(KEPT)
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=4, frameon=False)
    return figure


def _with_room(low: float, high: float) -> tuple[float, float]:
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _epochs_name(recipe: RecipeSummary) -> str:
    others = [f", {key} {value}" for key, value in recipe.changes.items() if key != "epochs"]
    epochs = _counted(recipe.changes.get("epochs", 1), "epoch")
    fewest, most = (of(len(at.seeds) for at in recipe.at_rates) for of in (min, max))
    seeds = _counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    return f"{words(recipe.arm)},\n{epochs}{''.join(others)} ({seeds})"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _shares(axes: Axes, points: list[PointSummary]) -> None:
    bars = [(point, kind, groups) for point in points for kind, groups in (point.share or {}).items()]
    shades, hatches = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7"), ("", "///", "...", "xx")
    for y, (_, _, groups) in enumerate(bars):
        for group, share in enumerate(groups):
            shade, hatch = shades[group % len(shades)], hatches[group % len(hatches)]
            label = f"experts of type {group}" if y == 0 else None
            axes.barh(y, share, left=sum(groups[:group]), color=shade, hatch=hatch, edgecolor="black", label=label)
    names = [f"{words(point.arm)}: rows of type {kind}" for point, kind, _ in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the gate weight, at the tuned learning rate")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(shades), fontsize=8, frameon=False)
