"""What a run logs of its experts while it trains: totals over the model, and the same for its parts.

The parts are the thirds of the model's depth, and each kind of linear. A whole model hides both: routers behave
differently near the input, and `down_proj` reads other activations than `gate_proj`. All of it is derived from the sums
that `ShareMeter` gathers anyway, once for each log and after they are on the CPU: a training step pays nothing.

Shape letters: L adapted linears, T task types, G groups (experts of one type), N figures of a linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loramoe.report.layers import bands_of, layers_of
from loramoe.report.shares import Shares

DEPTHS = ("early", "middle", "late")
PARTS_PREFIX = "routing/"


def live_figures(shares: Shares) -> dict[str, float]:
    """Everything that is logged of a window of steps, or of an evaluation, named for a log.

    Args:
        shares: What the experts did in it.

    Returns:
        For the whole model `blc`, `share/type1/group0`, … and `cov`, the mean over the linears of their coefficient of
        variation. For thirds of the depth `routing/blc/early`, which add up to `blc`, `routing/cov/early` and
        `routing/share/type1/group0/early`; for each kind of linear `routing/cov/down_proj`.
    """
    cov_L, share_TLG = shares.cov(), shares.group_share()
    by_name = {"cov": cov_L} | {
        f"share/type{task_type}/group{group}": share_TLG[t, :, g]
        for t, task_type in enumerate(shares.task_types)
        for g, group in enumerate(shares.groups)
    }
    values_LN = torch.stack(list(by_name.values()), dim=-1)
    figures = {**shares.flat(), "cov": cov_L.mean().item()}
    for part, linears in by_depth(shares.linears).items():
        figures[f"{PARTS_PREFIX}blc/{part}"] = shares.constraint_L[linears].sum().item()
        means = zip(by_name, values_LN[linears].mean(dim=0).tolist(), strict=True)
        figures |= {f"{PARTS_PREFIX}{name}/{part}": mean for name, mean in means}
    for kind, linears in by_kind(shares.linears).items():
        figures[f"{PARTS_PREFIX}cov/{kind}"] = cov_L[linears].mean().item()
    return figures


def totals(figures: dict[str, float]) -> dict[str, float]:
    """What is left of a log without the figures of the model's parts.

    Args:
        figures: What is logged; those of an evaluation begin with `eval_`.

    Returns:
        The others, in their order.
    """
    return {name: value for name, value in figures.items() if PARTS_PREFIX not in name}


def by_depth(linears: Sequence[str]) -> dict[str, list[int]]:
    """The linears of each third of the model's depth, in whole layers.

    Args:
        linears: Names of the adapted linears, in the model's order.

    Returns:
        For `early`, `middle` and `late` positions in `linears`; nothing for a model of fewer layers than that.
    """
    bands = bands_of(layers_of(linears), len(DEPTHS))
    if len(bands) < len(DEPTHS):
        return {}
    return {depth: list(band.linears) for depth, band in zip(DEPTHS, bands, strict=True)}


def by_kind(linears: Sequence[str]) -> dict[str, list[int]]:
    """The linears of each kind, such as all `down_proj`.

    Args:
        linears: Names of the adapted linears.

    Returns:
        For the last part of their names positions in `linears`; nothing where all are of one kind.
    """
    parts: dict[str, list[int]] = {}
    for position, name in enumerate(linears):
        parts.setdefault(name.rpartition(".")[2], []).append(position)
    return parts if len(parts) > 1 else {}
