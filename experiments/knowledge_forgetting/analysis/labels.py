"""Words beside lines in place of a legend: each where it covers least, tied to its line where it stands further off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from loramoe.evaluation.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DISTANCES: Final = (8, 16, 32, 56, 84)  # pixels at 100 dpi between a line and its name
_DIRECTIONS: Final = [(math.cos(n * math.pi / 8), math.sin(n * math.pi / 8)) for n in range(16)]
_TIED: Final = 16  # from this distance on, a thin line leads to the name
_BETWEEN: Final = 24  # points on each piece of a line that names should not cover
_ANCHORS: Final = 5  # places on each piece of a line that names may belong to
_FREE: Final = 5  # pixels around a name
# What a place costs; only their order of size matters.
_OUTSIDE, _OVERLAP, _OTHER_LINE, _OWN_LINE, _CROSSING, _PER_PIXEL = 1000, 300, 25, 8, 15, 0.25

Points = Sequence[tuple[float, float]]


def label_lines(
    figure: Figure, axes: Axes, lines: Mapping[str, Points], colours: Mapping[str, str], marks: Points
) -> None:
    """Writes each line's name where it covers no line, no mark and no other name, if there is such a place.

    Call it last: limits and sizes of the axes must not change any more.

    Args:
        figure: That of the axes.
        axes: Where the lines are drawn.
        lines: By name, their points in data coordinates.
        colours: By name, of the words.
        marks: Further points that should stay free.
    """
    figure.canvas.draw()  # settles the layout, on which places in pixels depend
    figure.set_layout_engine("none")
    dense = {name: axes.transData.transform(_along(points, _BETWEEN)) for name, points in lines.items()}
    free = axes.transData.transform(np.array(marks, dtype=np.float64).reshape(-1, 2))
    taken: list[Array] = []
    for name, points in lines.items():
        others = np.concatenate([free, *(line for other, line in dense.items() if other != name)])
        half = _half_size(axes, name)
        places = list(_places(axes.transData.transform(_along(points, _ANCHORS)), half))
        costs = [_cost(place, axes, dense[name], others, taken) for place in places]
        anchor, box, distance = places[int(np.argmin(costs))]
        _write(axes, name, colours[name], anchor, box.mean(axis=0), distance)
        taken.append(box)
        if distance >= _TIED:
            free = np.concatenate([free, _tie(anchor, box)])


def _along(points: Points, count: int) -> Array:
    """The points of a line, and `count` on each of its pieces [n, 2]."""
    corners = np.array(points, dtype=np.float64)
    pieces = [np.linspace(one, other, count) for one, other in itertools.pairwise(corners)]
    return np.concatenate([corners, *pieces])


def _half_size(axes: Axes, name: str) -> Array:
    text = axes.text(0.5, 0.5, name, transform=axes.transAxes, fontsize=9)
    left_bottom, right_top = text.get_window_extent().get_points()
    text.remove()
    return np.asarray(right_top - left_bottom) / 2


def _places(anchors: Array, half: Array) -> Iterator[tuple[Array, Array, int]]:
    """Anchor, box [[left, bottom], [right, top]] and distance of every place, in pixels."""
    for anchor in anchors:
        for distance in _DISTANCES:
            for direction in _DIRECTIONS:
                centre = anchor + np.array(direction) * (distance + half)
                yield anchor, np.stack([centre - half, centre + half]), distance


def _cost(
    place: tuple[Array, Array, int],
    axes: Axes,
    own: Array,
    others: Array,
    taken: list[Array],
) -> float:
    anchor, box, distance = place
    frame = axes.get_window_extent().get_points()
    outside = bool((box[0] < frame[0]).any() or (box[1] > frame[1]).any())
    overlaps = sum(bool((box[0] < other[1]).all() and (other[0] < box[1]).all()) for other in taken)
    tie = _tie(anchor, box)
    overlaps += sum(_inside(tie, other) > 0 for other in taken)
    crossed = np.linalg.norm(others[:, None] - tie[None], axis=2).min(initial=np.inf) < _FREE
    covered = _OTHER_LINE * _inside(others, box) + _OWN_LINE * _inside(own, box)
    return _OUTSIDE * outside + _OVERLAP * overlaps + covered + _CROSSING * bool(crossed) + _PER_PIXEL * distance


def _tie(anchor: Array, box: Array) -> Array:
    """Points on the way from a line to its name, the first few pixels left out."""
    return np.linspace(anchor, box.mean(axis=0), 24)[4:]


def _inside(points: Array, box: Array) -> int:
    return int(((points > box[0] - _FREE) & (points < box[1] + _FREE)).all(axis=1).sum())


def _write(axes: Axes, name: str, colour: str, anchor: Array, centre: Array, distance: int) -> None:
    start, end = axes.transData.inverted().transform(np.stack([anchor, centre]))
    tie = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
    arrow = tie if distance >= _TIED else None
    axes.annotate(name, start, end, arrowprops=arrow, ha="center", va="center", color=colour, fontsize=9)
