"""Which linears make a layer, and which layers a band: the two scales on which a report sums up its linears."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

BANDS: Final = 3  # the lower, the middle and the upper third of the layers

_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Layer(NamedTuple):
    """The adapted linears of one layer.

    Attributes:
        label: The layer's index in the model; of a linear outside of any layer, such as `lm_head`, its name.
        linears: Positions of its linears among all L of them.
    """

    label: str
    linears: tuple[int, ...]


def layers_of(linears: Sequence[str]) -> tuple[Layer, ...]:
    """Groups linears by layer.

    Args:
        linears: Names of the L adapted linears, in the order of the model.

    Returns:
        The layers, in that order.
    """
    found: dict[str, list[int]] = {}
    for position, name in enumerate(linears):
        index = _INDEX.search(name)
        found.setdefault(index.group(1) if index else name, []).append(position)
    return tuple(Layer(label, tuple(positions)) for label, positions in found.items())


def bands_of(layers: Sequence[Layer], count: int = BANDS) -> tuple[Layer, ...]:
    """Divides layers into neighbours of nearly the same number; a band is a layer with more linears.

    Args:
        layers: The layers, in the order of the model.
        count: How many bands; of fewer layers each is a band of its own.

    Returns:
        The bands, labelled as `0–3`.
    """
    count = min(count, len(layers))
    cuts = [round(len(layers) * cut / count) for cut in range(count + 1)]
    parts = [layers[begin:end] for begin, end in pairwise(cuts)]
    return tuple(
        Layer(
            part[0].label if len(part) == 1 else f"{part[0].label}–{part[-1].label}",
            tuple(position for layer in part for position in layer.linears),
        )
        for part in parts
    )
