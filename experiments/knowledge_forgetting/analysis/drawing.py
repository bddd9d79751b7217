"""What the figures share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from experiments.knowledge_forgetting.analysis.style import look
from experiments.knowledge_forgetting.analysis.summary import PointSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT: Final = "knowledge kept above chance, % of the base's"
DOWNSTREAM: Final = "downstream accuracy, %"
GREY: Final = "#767676"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def sign(figure: Figure, text: str) -> None:
    """Writes under a figure what it must not be shown without: outside of it, for `bbox_inches="tight"` to take in."""
    figure.canvas.draw()  # settles the layout
    figure.set_layout_engine("none")
    for legend in figure.legends:  # else bound to the edge of what is saved, which is beyond the text
        legend.set_bbox_to_anchor((0, 0, 1, 1), transform=figure.transFigure)
    taken, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    figure.text(taken.x0 / width, (taken.y0 - 0.05) / height, text, fontsize=7, color=GREY, va="top")


def lines_of(points: Iterable[PointSummary]) -> dict[str, list[PointSummary]]:
    """Points by arm."""
    lines: dict[str, list[PointSummary]] = {}
    for point in points:
        lines.setdefault(point.arm, []).append(point)
    return lines


def line_style(arm: str) -> dict[str, Any]:
    """How an arm's line is plotted."""
    of = look(arm)
    return {"color": of.colour, "marker": of.marker, "linestyle": of.dash, "markersize": 6, "linewidth": 1.8}


def percents(points: Iterable[PointSummary], figure: str) -> list[float]:
    """A figure of points in per cent."""
    return [100 * getattr(point, figure).value for point in points]
