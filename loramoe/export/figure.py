"""The figure of an export: how much the gates of each linear depend on the input, and what their mean costs there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from loramoe.export.report import LinearReport

FIGURE: Final = "export_linears.png"

_STYLES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]  # told apart without colour too


def draw_linears(linears: Mapping[str, LinearReport], file: Path) -> None:
    """Draws spread and relative error of the linears, in the order of the model, a line for each kind of them.

    Args:
        linears: What was measured, by name of the linear.
        file: The PNG to write.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    kinds: dict[str, list[LinearReport]] = {}
    for name, linear in linears.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(linear)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["cividis"]
    measures = {"spread": "spread of the gates  √E‖g − ḡ‖² / ‖ḡ‖", "relative_error": "relative error of what is added"}
    for axes, (measure, title) in zip(figure.subplots(1, 2), measures.items(), strict=True):
        for k, (kind, each) in enumerate(kinds.items()):
            dash, marker = _STYLES[k % len(_STYLES)]
            values = [getattr(linear, measure) for linear in each]
            colour = colours(0.85 * k / max(1, len(kinds) - 1))
            axes.plot(range(len(values)), values, dash, marker=marker, markersize=4, color=colour, label=kind)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("adapted layer")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=150)
