"""The two figures of a report: the weight of each group by layer, and the mean gate of each expert.

Lines differ in dash and marker as well as in colour (Okabe and Ito's), so they can be read without colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from loramoe.analysis.log import group_layers
from loramoe.analysis.routing import Array, RoutingStats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = "osD^vPX"
MOST_NUMBERS: Final = 100  # cells of a heat map that leave room for their values
MOST_TICKS: Final = 16


def by_decoder_layer(values: Array, layers: Iterable[str], axis: int = 1) -> Array:
    """The mean over the linear layers of each decoder layer, in place of the axis of the linear layers."""
    means = [values.take(positions, axis).mean(axis) for positions in group_layers(layers).values()]
    return np.stack(means, axis)


def plot_groups(stats: RoutingStats, target_TG: Array | None, names: Mapping[int, str], title: str) -> Figure:
    """Draws the weight of each group of experts by layer and task type, as difference from an even share.

    Args:
        stats: The statistics.
        target_TG: Share of each group that the constraint aims at, dashed; None for none.
        names: Name of each type.
        title: What the figure shows.

    Returns:
        The figure: one panel for each group.
    """
    even_G = stats.of_group_EG.mean(axis=0)
    points_TNG = 100 * (by_decoder_layer(stats.share_TLG, stats.layers) - even_G)
    labels = list(group_layers(stats.layers))
    figure, axes = _panels(len(stats.groups), 3.4, sharey=True)
    for g, (axis, group) in enumerate(zip(axes, stats.groups, strict=True)):
        axis.axhline(0, color="0.6", linewidth=1)
        for t, task_type in enumerate(stats.task_types):
            colour = COLOURS[t % len(COLOURS)]
            marker = {"marker": MARKERS[t % len(MARKERS)], "markersize": 5}
            axis.plot(points_TNG[t, :, g], color=colour, **marker, label=f"{names[task_type]} samples")
            if target_TG is not None:
                aim = 100 * (target_TG[t, g] - even_G[g])
                axis.axhline(aim, color=colour, linestyle="--", linewidth=1, label=f"target, {names[task_type]}")
        axis.set_title(f"{names[group]} experts", fontsize=10)
        _label_layers(axis.xaxis, labels)
        axis.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    axes[0].set_ylabel("difference from an even share, points")
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=8, handlelength=3)
    return figure


def plot_experts(stats: RoutingStats, names: Mapping[int, str]) -> Figure:
    """Draws the mean gate of each expert by layer, task types side by side, in colours that diverge around 1/E.

    Args:
        stats: The statistics.
        names: Name of each type.

    Returns:
        The figure.
    """
    points_TNE = 100 * (by_decoder_layer(stats.gate_TLE, stats.layers) - 1 / len(stats.expert_types))
    order = np.argsort(stats.expert_types, kind="stable")  # experts of one group stand together
    points_TNE, types = points_TNE[..., order], [stats.expert_types[e] for e in order]
    most = max(float(np.abs(points_TNE).max()), 0.1)
    labels = list(group_layers(stats.layers))
    figure, axes = _panels(len(stats.task_types), min(9.0, 1.9 + 0.24 * len(labels)), sharey=True)
    for points_NE, axis, task_type in zip(points_TNE, axes, stats.task_types, strict=True):
        image = axis.imshow(points_NE, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        if points_NE.size <= MOST_NUMBERS:
            for (n, e), value in np.ndenumerate(points_NE):
                ink = "white" if abs(value) > 0.6 * most else "black"
                axis.text(e, n, f"{value:+.1f}", color=ink, fontsize=7, ha="center", va="center")
        axis.set_title(f"{names[task_type]} samples", fontsize=10)
        axis.set_xticks(range(len(order)), order, fontsize=7)
        axis.set_xlabel("   |   ".join(f"{names[group]} experts" for group in stats.groups), fontsize=8)
        for e in np.flatnonzero(np.diff(types)):
            axis.axvline(e + 0.5, color="black", linewidth=1.5)
    _label_layers(axes[0].yaxis, labels)
    figure.colorbar(image, ax=list(axes), label=f"difference from 1/{len(order)}, points")
    return figure


def _panels(count: int, height: float, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.2 * count, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False, **options)[0]


def _label_layers(axis: Any, labels: list[str]) -> None:
    step = -(-len(labels) // MOST_TICKS)
    axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
    axis.set_label_text("layer")
