"""What the constraint aims at, in closed form, and how near an adapter came to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loramoe.analysis.routing import Array, RoutingStats
from loramoe.tuner.config import LoraMoeConfig

SPECIALISED = 0.5  # least part of the target at which the groups count as specialised


def target_shares(stats: RoutingStats, config: LoraMoeConfig) -> Array | None:
    """The share of each group [T, G] at the minimum of the constraint with importance "mean".

    With J = I under "match", 1 / I under "paper", and a Lagrange multiplier for Σ_e Q_te = 1

        Q_te = (ν + λ_t · J_te) · J_te,   λ_t = (1 − ν · Σ_e J_te) / Σ_e J_te²,   ν = ⟨1 / ΣJ²⟩ / ⟨ΣJ / ΣJ²⟩

    where ⟨·⟩ is the mean over the samples. For groups of equal size λ is 0, so Z is even and, under "match",
    Q_match / Q_other = (1 + a) / (1 − a).

    Returns:
        The shares; None without a constraint, or with importance "sum", whose minimum depends on the lengths.
    """
    if config.blc_weight == 0 or config.blc_importance == "sum":
        return None
    I_TE = 1 + config.blc_alpha * np.where(np.equal.outer(stats.task_types, stats.expert_types), 1.0, -1.0)
    J_TE = I_TE if config.blc_target == "match" else 1 / I_TE
    sum_T, squares_T = J_TE.sum(axis=1), (J_TE**2).sum(axis=1)
    samples_T = stats.samples_T
    nu = np.average(1 / squares_T, weights=samples_T) / np.average(sum_T / squares_T, weights=samples_T)
    lambda_T = (1 - nu * sum_T) / squares_T
    return np.asarray((nu + lambda_T[:, None] * J_TE) * J_TE @ stats.of_group_EG)


def separation(share_TG: Array, stats: RoutingStats) -> float | None:
    """Share that groups get from samples of their own type, minus that from others; None for a single task type."""
    if len(stats.task_types) < 2:
        return None
    own_T, other_T = _own_and_other(share_TG, stats)
    return float((own_T - other_T).mean())


def _own_and_other(share_TG: Array, stats: RoutingStats) -> tuple[Array, Array]:
    share_TT = share_TG[:, [stats.groups.index(task_type) for task_type in stats.task_types]]
    own_T = share_TT.diagonal()
    return own_T, (share_TT.sum(axis=0) - own_T) / (len(own_T) - 1)


def conclude(stats: RoutingStats, config: LoraMoeConfig, names: Mapping[int, str]) -> str:
    """The sentence that opens a report: how far the groups specialise, of how much, and what to try if they do not."""
    found, target_TG = separation(stats.share_TG, stats), target_shares(stats, config)
    if found is None:
        only = names[stats.task_types[0]]
        return f"All samples are {only} samples, so no separation can be measured. Give samples of several types."
    weights = _weights(stats, names)
    if target_TG is None:
        reason = "blc_weight=0" if config.blc_weight == 0 else "blc_importance=sum depends on the samples' lengths"
        return f"Separation {_points(found)} points, without a target ({reason}): {weights}."
    aim = separation(target_TG, stats) or 0.0
    sentence = f"Separation {_points(found)} of {_points(aim)} points aimed at: {weights}."
    if found * np.sign(aim) >= SPECIALISED * abs(aim):
        return sentence
    advice = f"more steps, batches that hold samples of all types, or a larger blc_weight than {config.blc_weight:g}"
    return f"The groups do not specialise. {sentence} Try {advice}."


def _weights(stats: RoutingStats, names: Mapping[int, str]) -> str:
    types = [names[task_type] for task_type in stats.task_types]
    two = stats.task_types == stats.groups and len(types) == 2
    others, parts = f"{types[0]} samples" if two else "others", []
    for name, own, other in zip(types, *100 * np.array(_own_and_other(stats.share_TG, stats)), strict=True):
        parts.append(f"{name} samples give {own:.1f} % of their weight to the {name} experts, {others} {other:.1f} %")
    return "; ".join(parts[1:] if two else parts)  # the shares of two groups mirror each other


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:g}"  # −0.0 + 0.0 is 0.0
