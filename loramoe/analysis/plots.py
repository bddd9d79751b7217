"""The two figures of a report, without pyplot's global state: the weight of each group, the mean gate of each expert.

Lines differ in dash and marker as well as in colour (Okabe and Ito's), so they can be read without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from loramoe.analysis.log import group_layers
from loramoe.analysis.routing import Array, RoutingStats

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = "osD^vPX"
MOST_NUMBERS: Final = 100  # cells of a heat map that leave room for their values
MOST_TICKS: Final = 16


def by_decoder_layer(values: Array, layers: Iterable[str], axis: int = 1) -> Array:
    """The mean over the linear layers of each decoder layer, in place of the axis of the linear layers."""
    means = [values.take(positions, axis).mean(axis) for positions in group_layers(layers).values()]
    return np.stack(means, axis)


def plot_groups(stats: RoutingStats, target_TG: Array | None, names: Mapping[int, str], title: str) -> Figure:
    """The weight of each group by layer and task type, as difference from an even share; targets are dashed."""
    even_G = stats.of_group_EG.mean(axis=0)
    points_TNG = 100 * (by_decoder_layer(stats.share_TLG, stats.layers) - even_G)
    figure, panels = _panels(len(stats.groups), 3.4)
    for g, (panel, group) in enumerate(zip(panels, stats.groups, strict=True)):
        panel.axhline(0, color="0.6", linewidth=1)
        for t, task_type in enumerate(stats.task_types):
            colour, marker = COLOURS[t % len(COLOURS)], MARKERS[t % len(MARKERS)]
            panel.plot(points_TNG[t, :, g], marker, linestyle="-", color=colour, label=f"{names[task_type]} samples")
            if target_TG is not None:
                aim = 100 * (target_TG[t, g] - even_G[g])
                panel.axhline(aim, color=colour, linestyle="--", linewidth=1, label=f"target, {names[task_type]}")
        panel.set_title(f"{names[group]} experts", fontsize=10)
        _label_layers(panel.xaxis, stats)
        panel.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    panels[0].set_ylabel("difference from an even share, points")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(points_TNG), fontsize=8, handlelength=3)
    return figure


def plot_experts(stats: RoutingStats, names: Mapping[int, str]) -> Figure:
    """The mean gate of each expert by layer, task types side by side, in colours that diverge around 1/E."""
    order = np.argsort(stats.expert_types, kind="stable")  # experts of one group stand together
    points_TNE = 100 * (by_decoder_layer(stats.gate_TLE, stats.layers)[..., order] - 1 / len(order))
    most = max(float(np.abs(points_TNE).max()), 0.1)
    figure, panels = _panels(len(stats.task_types), min(9.0, 1.9 + 0.24 * points_TNE.shape[1]))
    for points_NE, panel, task_type in zip(points_TNE, panels, stats.task_types, strict=True):
        image = panel.imshow(points_NE, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        for (n, e), value in np.ndenumerate(points_NE if points_NE.size <= MOST_NUMBERS else points_NE[:0]):
            ink = "white" if abs(value) > 0.6 * most else "black"
            panel.text(e, n, f"{value:+.1f}", color=ink, fontsize=7, ha="center", va="center")
        for e in np.flatnonzero(np.diff(np.array(stats.expert_types)[order])):
            panel.axvline(e + 0.5, color="black", linewidth=1.5)
        panel.set_title(f"{names[task_type]} samples", fontsize=10)
        panel.set_xticks(range(len(order)), order, fontsize=7)
        panel.set_xlabel(" | ".join(names[group] for group in stats.groups) + " experts", fontsize=8)
    _label_layers(panels[0].yaxis, stats)
    figure.colorbar(image, ax=list(panels), label=f"difference from 1/{len(order)}, points")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(1 + 3.2 * count, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, count, squeeze=False, sharey=True)[0]


def _label_layers(axis: Any, stats: RoutingStats) -> None:
    labels = list(group_layers(stats.layers))
    step = -(-len(labels) // MOST_TICKS)
    axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
    axis.set_label_text("layer")
