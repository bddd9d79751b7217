"""The numbers of a report, from the sums of `routing`: pure functions, and one record of them all.

    mean gate    Q / tokens; sums to 1 over the experts
    share        mean gates of the experts of one type added up
    entropy      −Σ_e g_e log g_e / log E: of each token's gates, then averaged over the tokens; and of the mean gates
    variation    coefficient of variation of Q over the experts, √var(Q) / mean(Q), unbiased as in the constraint

Entropy of the tokens' gates is 1 where the router makes no choice and 0 where it chooses one expert. Entropy of the
mean gates is 1 where all experts get equally much in the end, though each token may have chosen.

Shape letters: T task types, L adapted linears, N layers, E experts, G groups (experts of one type), K bands, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from loramoe.report.layers import Layer, layers_of
from loramoe.report.routing import Routing

MIN_COUNT: Final = 5  # occurrences of a token before it is told of
TOP: Final = 8  # tokens of each expert and band
LIKED: Final = 1.05  # least ratio to the expert's mean gate: below, it would read ×1.0


@dataclass(frozen=True)
class Liked:
    """A token that an expert gets more of than of others.

    Attributes:
        id: Its id.
        text: What it reads, as the tokenizer tells.
        count: How often it occurred.
        gate: Its mean gate at the expert, over the linears of the band.
        ratio: That, divided by the expert's mean gate over all tokens.
    """

    id: int
    text: str
    count: int
    gate: float
    ratio: float


@dataclass(frozen=True)
class BandTokens:
    """The tokens that the experts of a band of layers like.

    Attributes:
        layers: The band, as `0–3`.
        gate_E: Mean gate of each expert there.
        liked: For each expert the tokens of highest ratio, from LIKED on, from high to low.
    """

    layers: str
    gate_E: list[float]
    liked: list[list[Liked]]


@dataclass(frozen=True)
class Measures:
    """What a report says in numbers; lists are nested as their names' letters.

    Attributes:
        rows: Number of rows.
        tokens_T: Number of real tokens by task type.
        task_types: The task types, ascending.
        expert_types: Type of each expert.
        groups: The types that experts have, ascending.
        linears: Names of the adapted linears.
        layers: Labels of the layers: index in the model, or name of a linear outside of any layer.
        gate_TLE: Mean gate by linear.
        gate_TNE: Mean gate by layer: the mean over its linears, here and below.
        share_TG: Share of each group, mean over all linears.
        share_TNG: Share of each group by layer.
        token_entropy_TN: Entropy of the tokens' gates, of at most 1.
        load_entropy_TN: Entropy of the mean gates, of at most 1.
        variation_L: Coefficient of variation of Q by linear, all task types together.
        variation_N: The same by layer.
        variation_TN: Of the Q of each task type.
        min_count: How often a token had to occur to be told of.
        bands: Tokens that the experts like, by band of layers.
    """

    rows: int
    tokens_T: list[int]
    task_types: list[int]
    expert_types: list[int]
    groups: list[int]
    linears: list[str]
    layers: list[str]
    gate_TLE: list[list[list[float]]]
    gate_TNE: list[list[list[float]]]
    share_TG: list[list[float]]
    share_TNG: list[list[list[float]]]
    token_entropy_TN: list[list[float]]
    load_entropy_TN: list[list[float]]
    variation_L: list[float]
    variation_N: list[float]
    variation_TN: list[list[float]]
    min_count: int
    bands: list[BandTokens]


def normalised_entropy(p: Tensor) -> Tensor:
    """−Σ p log p / log E over the last dimension.

    Args:
        p: Probabilities [..., E], of at least 2 experts.

    Returns:
        Entropies [...] between 0 and 1.
    """
    entropy: Tensor = torch.special.entr(p).sum(dim=-1) / math.log(p.shape[-1])
    return entropy


def variation(Q: Tensor) -> Tensor:
    """Coefficient of variation √var / mean over the last dimension, by the unbiased variance.

    Args:
        Q: Importances [..., E], of at least 2 experts, not all 0.

    Returns:
        [...]; 0 where all are equal, √E where one has everything.
    """
    relative: Tensor = Q.std(dim=-1) / Q.mean(dim=-1)
    return relative


def group_shares(gate: Tensor, expert_types: Sequence[int]) -> Tensor:
    """Gate weight of the experts of each type.

    Args:
        gate: Mean gates [..., E].
        expert_types: Type of each expert.

    Returns:
        [..., G], types ascending.
    """
    types_E = torch.tensor(expert_types)
    return torch.stack([gate[..., types_E == group].sum(dim=-1) for group in sorted(set(expert_types))], dim=-1)


def liked_tokens(gate_VE: Tensor, count_V: Tensor, min_count: int, top: int) -> list[list[tuple[int, float]]]:
    """Which tokens each expert gets more of than of others, by ratio to its own mean gate.

    Args:
        gate_VE: Gate weight by token, summed over its occurrences.
        count_V: How often each token occurred.
        min_count: How often it has to have occurred; a token seen once would always win.
        top: Most tokens of each expert.

    Returns:
        For each expert, ids and ratios from LIKED on, from high to low; equal ones by id.
    """
    often = (count_V >= min_count).nonzero().squeeze(-1)
    mean_E = gate_VE.sum(dim=0) / count_V.sum()
    ratio_VE = gate_VE[often] / count_V[often, None] / mean_E
    ratio_EV, order_EV = ratio_VE.T.sort(dim=-1, descending=True, stable=True)
    best = zip(ratio_EV[:, :top].tolist(), often[order_EV[:, :top]].tolist(), strict=True)
    return [[(id, ratio) for ratio, id in zip(*each, strict=True) if ratio >= LIKED] for each in best]


def measure(routing: Routing, text_of: Callable[[int], str], min_count: int = MIN_COUNT, top: int = TOP) -> Measures:
    """All numbers of a report.

    Args:
        routing: The sums.
        text_of: What a token id reads.
        min_count: How often a token has to have occurred to be told of.
        top: Most tokens to tell of each expert and band.

    Returns:
        The numbers.
    """
    layers = layers_of(routing.linears)
    tokens_T1 = routing.tokens_T[:, None].double()
    gate_TLE = routing.Q_TLE / tokens_T1[..., None]
    share_TLG = group_shares(gate_TLE, routing.expert_types)
    variation_L = variation(routing.Q_TLE.sum(dim=0))
    token_entropy_TL = routing.entropy_TL / tokens_T1 / math.log(len(routing.expert_types))
    return Measures(
        rows=routing.rows,
        tokens_T=routing.tokens_T.tolist(),
        task_types=list(routing.task_types),
        expert_types=list(routing.expert_types),
        groups=sorted(set(routing.expert_types)),
        linears=list(routing.linears),
        layers=[layer.label for layer in layers],
        gate_TLE=gate_TLE.tolist(),
        gate_TNE=_by_layer(gate_TLE, layers, dim=1),
        share_TG=share_TLG.mean(dim=1).tolist(),
        share_TNG=_by_layer(share_TLG, layers, dim=1),
        token_entropy_TN=_by_layer(token_entropy_TL, layers, dim=1),
        load_entropy_TN=_by_layer(normalised_entropy(gate_TLE), layers, dim=1),
        variation_L=variation_L.tolist(),
        variation_N=_by_layer(variation_L, layers, dim=0),
        variation_TN=_by_layer(variation(routing.Q_TLE), layers, dim=1),
        min_count=min_count,
        bands=[_band(routing, k, text_of, min_count, top) for k in range(len(routing.bands))],
    )


def _by_layer(values: Tensor, layers: Sequence[Layer], dim: int) -> Any:
    """Means over the linears of each layer, as nested lists."""
    parts = [values.index_select(dim, torch.tensor(layer.linears)).mean(dim=dim) for layer in layers]
    return torch.stack(parts, dim=dim).tolist()


def _band(routing: Routing, k: int, text_of: Callable[[int], str], min_count: int, top: int) -> BandTokens:
    gate_VE, count_V = routing.Q_KVE[k], routing.count_V
    liked = [
        [
            Liked(id, text_of(id), int(count_V[id]), float(gate_VE[id, e] / count_V[id]), ratio)
            for id, ratio in of_expert
        ]
        for e, of_expert in enumerate(liked_tokens(gate_VE, count_V, min_count, top))
    ]
    return BandTokens(routing.bands[k].label, (gate_VE.sum(dim=0) / count_V.sum()).tolist(), liked)
