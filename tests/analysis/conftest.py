"""Routing statistics of an imaginary adapter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from loramoe.analysis import RoutingStats


@pytest.fixture
def make_stats() -> Callable[..., RoutingStats]:
    """Makes statistics of two linear layers in each of some decoder layers; every type prefers its own experts."""

    def make(task_types=(0, 1), expert_types=(1, 1, 0, 0), own=0.55, layers=3) -> RoutingStats:
        matches_TE = np.equal.outer(task_types, expert_types)
        count_T1 = matches_TE.sum(1, keepdims=True)
        gate_TE = np.where(matches_TE, own / count_T1, (1 - own) / (len(expert_types) - count_T1))
        names = tuple(f"model.layers.{n}.mlp.{kind}" for n in range(layers) for kind in ("up_proj", "down_proj"))
        return RoutingStats(
            gate_TLE=np.repeat(gate_TE[:, None], len(names), axis=1),
            entropy_TL=np.full((len(task_types), len(names)), 0.9),
            constraint_L=np.arange(1.0, len(names) + 1),
            tokens_T=np.arange(1.0, len(task_types) + 1) * 1000,
            samples_T=np.full(len(task_types), 10.0),
            task_types=task_types,
            expert_types=expert_types,
            layers=names,
        )

    return make
