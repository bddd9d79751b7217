"""The figure of docs/results.md: knowledge lost against what is learnt, one panel a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

from experiments.analysis import trajectories
from experiments.runs import METHODS, Plan

DRAWN: Final = {"full": ("#444444", "-", "o"), "lora": ("#d55e00", "-", "s"), "loramoe": ("#0072b2", "-", "D")}
DRAWN_TOO: Final = {"equal_gates": ("#56b4e9", ":", "^")}
UNITS: Final = {"tiny": "nats per answer", "real": "nats per token"}


def draw(scales: Mapping[str, tuple[Plan, Sequence[Mapping[str, Any]]]], titles: Mapping[str, str], file: Path) -> None:
    """Draw the panels of the scales that have results.

    Args:
        scales: Plan and results by name of the scale.
        titles: The answer of each scale.
        file: Where to write the PNG.
    """
    sns.set_theme(style="ticks", context="paper")
    figure, panels = plt.subplots(1, len(scales), figsize=(5.6 * len(scales), 4.2), squeeze=False, layout="constrained")
    for panel, (name, (plan, results)) in zip(panels[0], scales.items(), strict=True):
        curves = trajectories(plan, results)
        _panel(panel, curves, trajectories(plan, results, "interpolated"))
        panel.set(xlabel=f"learnt: fall of the downstream loss, {UNITS[name]}", ylabel="knowledge loss, rise in nats")
        panel.set_title(titles[name], fontsize=9)
        inset = panel.inset_axes((0.1, 0.55, 0.36, 0.38))
        _lines(inset, curves, "kl", label=False)
        inset.set_xlabel("KL to the base model", fontsize=7, labelpad=1)
        inset.tick_params(labelsize=6)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3, fontsize=8, frameon=False
    )
    figure.savefig(file, dpi=140, metadata={"Software": None})
    plt.close(figure)


def _panel(panel: Any, curves: Any, interpolated: Any) -> None:
    for name, (colour, style, _) in {**DRAWN, **DRAWN_TOO}.items():
        for _, run in curves[curves.method == name].groupby("seed"):
            panel.plot(run.learning, run.rise, style, color=colour, linewidth=0.4, alpha=0.35)
    _lines(panel, curves, "learning")
    path = interpolated[interpolated.method == "full"].groupby("place").mean(numeric_only=True)
    panel.plot(path.learning, path.rise, "--", color=DRAWN["full"][0], linewidth=1, label="full, interpolated to base")


def _lines(axes: Any, curves: Any, column: str, label: bool = True) -> None:
    """The mean over seeds at each checkpoint."""
    for name, (colour, style, marker) in {**DRAWN, **DRAWN_TOO}.items():
        mean = curves[curves.method == name].groupby("place").mean(numeric_only=True)
        axes.plot(
            mean[column],
            mean.rise,
            style,
            color=colour,
            marker=marker,
            markersize=3.5,
            linewidth=1.4,
            label=METHODS[name].label if label else None,
        )
