"""Whether an adapter fits a model, and if not, why: the shapes of its weights tell what it was trained on.

PEFT would say "size mismatch" for a shape that is wrong, and nothing but a warning where weights are missing or left
over; the experts that have none then stay as they were drawn at random. Here both are errors, and say what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from peft.utils.other import get_pattern_key
from torch import Tensor

from loramoe.adapter_files import CONFIG, CheckpointError
from loramoe.config import LoraMoeConfig

PARTS = ("router", "A", "B")
_NAME = re.compile(r"^(?:base_model\.model\.)?(?P<linear>.*)\.loramoe_(?P<part>A|B|router)\.weight$", re.DOTALL)


class Linear(NamedTuple):
    """A linear that an adapter is on.

    Attributes:
        D: In-features.
        F: Out-features.
        R: Rank of each expert.
    """

    D: int
    F: int
    R: int


def check_weights(config: LoraMoeConfig, weights: Mapping[str, Tensor]) -> None:
    """Checks that an adapter's weights and its configuration belong together.

    Args:
        config: The adapter's configuration.
        weights: Its tensors by name, with stacked experts; those of other names are not looked at.

    Raises:
        CheckpointError: If there are none, a linear lacks a part, or has another number of experts or rank.
    """
    by_linear = _by_linear(weights)
    if not by_linear:
        raise CheckpointError("the adapter's weights hold no LoRAMoE: there is no loramoe_A, loramoe_B or router.")
    for linear, shapes in by_linear.items():
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, linear), config.r)
        _check_parts(linear, shapes)
        _check_experts(linear, shapes, config.lora_nums, rank)


def check_fit(
    config: LoraMoeConfig,
    weights: Mapping[str, Tensor],
    linears: Mapping[str, Linear],
    saved: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Checks that an adapter's weights fit the model that they are about to be put on.

    Args:
        config: The adapter's configuration.
        weights: Its tensors by name, with stacked experts.
        linears: The linears of the model that the configuration adapts, by name.
        saved: Shapes of the weights of `modules_to_save`, by name; () where a shape cannot be told.

    Raises:
        CheckpointError: If the adapter was trained on a model with other linears or features, has another number of
            experts or rank than its configuration says, or is not whole.
    """
    by_linear = _by_linear(weights)
    for linear in (name for name in linears if name in by_linear):
        _check_parts(linear, by_linear[linear])
        _check_features(linear, by_linear[linear], linears[linear], config)
        _check_experts(linear, by_linear[linear], config.lora_nums, linears[linear].R)
    _check_names(by_linear, linears, config)
    for name, shape in (saved or {}).items():
        _check_saved(name, shape, weights.get(name), config)


def _by_linear(weights: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the parts of each linear."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in weights.items():
        if match := _NAME.match(name):
            shapes.setdefault(match["linear"], {})[match["part"]] = tuple(tensor.shape)
    return shapes


def _check_parts(linear: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    lost = [f"loramoe_{part}" for part in PARTS if part not in shapes]
    if lost:
        raise CheckpointError(
            f"{linear} should have a router, A and B, but the adapter's weights lack its {', '.join(lost)}: the file "
            "is not whole. Copy or download it again."
        )
    router, A, B = (shapes[part] for part in PARTS)
    if not (len(router) == len(A) == len(B) == 2 and router[1] == A[1] and A[0] == B[1]):
        raise CheckpointError(
            f"{linear} has a router {list(router)}, A {list(A)} and B {list(B)}, expected [E, D], [E·R, D] and "
            "[F, E·R]: the file is damaged. Copy or download it again."
        )


def _check_experts(linear: str, shapes: Mapping[str, tuple[int, ...]], experts: int, rank: int) -> None:
    """Checks E and R, whose product alone A and B show."""
    E, columns = shapes["router"][0], shapes["A"][0]
    if experts != E:
        raise CheckpointError(
            f"{CONFIG} says lora_nums={experts}, but the weights of {linear} hold {E} experts: weights and {CONFIG} do "
            "not belong together. Take both from the same save."
        )
    if columns != E * rank:
        raise CheckpointError(
            f"{CONFIG} says r={rank} for {linear}, but its A has {columns} rows for {E} experts, not {E} × {rank}: "
            f"weights and {CONFIG} do not belong together. Take both from the same save."
        )


def _check_features(linear: str, shapes: Mapping[str, tuple[int, ...]], wanted: Linear, config: LoraMoeConfig) -> None:
    D, F = shapes["A"][1], shapes["B"][0]
    if (D, F) != (wanted.D, wanted.F):
        raise CheckpointError(
            f"{linear}: the adapter was trained on {_base(config)} with {D} in-features and {F} out-features; this "
            f"model has {wanted.D} and {wanted.F}. Load it onto the base model that it was trained on."
        )


def _check_names(by_linear: Collection[str], linears: Collection[str], config: LoraMoeConfig) -> None:
    lost = [name for name in linears if name not in by_linear]
    if lost:
        raise CheckpointError(
            f"the adapter holds no weights for {_some(lost)} of this model. It was trained on {_base(config)}, which "
            "may be another model than this one, or its file is not whole. Load it onto its own base model, or copy "
            "it again."
        )
    foreign = [name for name in by_linear if name not in linears]
    if foreign:
        raise CheckpointError(
            f"the adapter holds weights for {_some(foreign)}, which this model does not have, or which target_modules "
            f"in {CONFIG} does not name. Load it onto the base model that it was trained on: {_base(config)}."
        )


def _check_saved(name: str, shape: tuple[int, ...], tensor: Tensor | None, config: LoraMoeConfig) -> None:
    if tensor is None:
        raise CheckpointError(
            f"{CONFIG} names modules_to_save={config.modules_to_save}, but the adapter holds no weights for {name}: "
            "the file is not whole. Copy or download it again."
        )
    if shape and tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name}: the adapter was trained on {_base(config)}, where it has the shape {list(tensor.shape)}; in this "
            f"model it has {list(shape)}. Load it onto the base model that it was trained on."
        )


def _base(config: LoraMoeConfig) -> str:
    name = config.base_model_name_or_path
    return f"base model {name!r}" if name else "a base model"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more linears"
