"""What a training logs of its routers: values of the whole model, and the same for its parts."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from loramoe.analysis.routing import RoutingStats

PARTS_PREFIX = "routing/"


def log_values(stats: RoutingStats) -> dict[str, float]:
    """What is logged of a window of steps, or of an evaluation.

    It is `blc`, the constraint; `cov`, the load imbalance; `share/type1/group0`, …; `entropy` where it is known; and
    the same for each part of the model, as `routing/blc/early`.
    """
    values = _values(stats, range(len(stats.layers)))
    for part, layers in split_parts(stats.layers).items():
        values |= {f"{PARTS_PREFIX}{name}/{part}": value for name, value in _values(stats, layers).items()}
    return values


def _values(stats: RoutingStats, layers: Iterable[int]) -> dict[str, float]:
    chosen = list(layers)
    values = {"blc": float(stats.constraint_L[chosen].sum()), "cov": float(stats.load_imbalance_L[chosen].mean())}
    share_TG = stats.share_TLG[:, chosen].mean(axis=1)
    for t, task_type in enumerate(stats.task_types):
        values |= {f"share/type{task_type}/group{group}": float(share_TG[t, g]) for g, group in enumerate(stats.groups)}
    if stats.entropy_TL is not None:
        values["entropy"] = float(np.average(stats.entropy_TL[:, chosen].mean(axis=1), weights=stats.tokens_T))
    return values


def group_layers(layers: Iterable[str]) -> dict[str, list[int]]:
    """Positions of linear layers by the index of their decoder layer, or by their own name outside of any."""
    found: dict[str, list[int]] = {}
    for position, name in enumerate(layers):
        index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        found.setdefault(index.group(1) if index else name, []).append(position)
    return found


def split_parts(layers: Iterable[str]) -> dict[str, list[int]]:
    """Positions of linear layers by thirds of the depth (in whole decoder layers) and by kind, such as `down_proj`.

    A model of fewer than three decoder layers has no thirds, and one kind alone is no part.
    """
    layers = tuple(layers)
    parts: dict[str, list[int]] = {}
    decoder_layers = list(group_layers(layers).values())
    if len(decoder_layers) >= 3:
        for depth, third in zip(
            ("early", "middle", "late"), np.array_split(range(len(decoder_layers)), 3), strict=True
        ):
            parts[depth] = [position for index in third for position in decoder_layers[index]]
    kinds = [name.rpartition(".")[2] for name in layers]
    if len(set(kinds)) > 1:
        parts |= {kind: [n for n, each in enumerate(kinds) if each == kind] for kind in dict.fromkeys(kinds)}
    return parts
