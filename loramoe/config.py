"""Configuration of the LoRAMoE tuner: what PEFT users know of LoraConfig, plus the experts and their constraint.

Defaults are the paper's (arXiv 2312.09979, implementation details, and the released launcher), with the constraint on.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from loramoe.balance import BLC_TARGETS, BlcTarget

# Most rows of A that a linear may have, all experts together. Real adapters have tens to hundreds; a broken file must
# not take all memory before its weights are looked at.
MAX_ROWS = 65_536


@dataclass
class LoraMoeConfig(PeftConfig):  # type: ignore[misc]  # peft is not typed
    """Configuration of a LoRAMoE adapter: N LoRA experts and a softmax router beside each adapted linear.

    Args:
        r: Rank R of each expert.
        lora_alpha: The experts' sum is scaled by lora_alpha / r.
        lora_dropout: Dropout probability on the experts' input (the router sees the input whole).
        lora_nums: Number of experts E.
        blc_alpha: a of the constraint: importance counts 1 + a where expert and sample are of one type, else 1 − a. In
            [0, 1).
        blc_weight: Weight of the constraint in the training loss; 0 switches it off.
        expert_types: Type of each expert, E ints. Default: the first E // 2 have type 1 (knowledge questions), the rest
            type 0.
        blc_target: "paper" (the released code: the group that matches the sample's type ends with *less* gate weight)
            or "match" (it ends with more).
        target_modules: Names, suffixes or a regular expression of the linears to adapt, or "all-linear". Default: the
            linears of the MLP, for architectures we know.
        exclude_modules: Names, suffixes or a regular expression of linears to leave alone.
        use_rslora: Scale by lora_alpha / √r instead (rank-stabilised LoRA, arXiv 2312.03732).
        init_lora_weights: True: B starts at zero, so that the adapted model starts as the base model. False: B is drawn
            at random, for tests.
        modules_to_save: Modules beside the adapter that are trained and saved whole.
        layers_to_transform: Index, or list of indices, of the layers to adapt. Default: all.
        layers_pattern: Name of the list of layers, where it is not the usual one.
        rank_pattern: Names or regular expressions of linears, mapped to a rank other than r.
        alpha_pattern: Names or regular expressions of linears, mapped to an alpha other than lora_alpha.

    Raises:
        ValueError: If a value is outside its range, or values contradict each other.
    """

    r: int = field(default=4, metadata={"help": "Rank of each expert."})
    lora_alpha: float = field(default=32, metadata={"help": "The experts' sum is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout probability on the experts' input."})
    lora_nums: int = field(default=8, metadata={"help": "Number of experts beside each linear."})
    blc_alpha: float = field(default=0.1, metadata={"help": "Importance counts 1 ± blc_alpha by type. In [0, 1)."})
    blc_weight: float = field(default=0.1, metadata={"help": "Weight of the balancing constraint; 0 is off."})
    expert_types: list[int] | None = field(
        default=None, metadata={"help": "Type of each expert. Default: the first half has type 1, the rest type 0."}
    )
    blc_target: BlcTarget = field(
        default="paper", metadata={"help": "'paper': the matching group gets less gate weight; 'match': more."}
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Linears to adapt: names, suffixes, a regex or 'all-linear'. Default: the MLP's."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Linears to leave alone: names, suffixes or a regex."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / √r instead."})
    init_lora_weights: bool = field(default=True, metadata={"help": "Start as the base model (B = 0)."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules beside the adapter that are trained and saved whole."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Index, or indices, of the layers to adapt. Default: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of layers, where it is not the usual one."}
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Linears with another rank than r."})
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Linears with another alpha than lora_alpha."}
    )

    def __post_init__(self) -> None:
        _check_types(self)
        super().__post_init__()
        self.peft_type = PeftType("LORAMOE")
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT keeps its own
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if self.expert_types is not None:
            self.expert_types = list(self.expert_types)
        _check_experts(self)
        _check_constraint(self)
        _check_layers(self)

    @property
    def types_of_experts(self) -> tuple[int, ...]:
        """Type of each of the E experts: `expert_types`, or else the first E // 2 have type 1 and the rest type 0."""
        if self.expert_types is not None:
            return tuple(self.expert_types)
        knowledge = self.lora_nums // 2
        return (1,) * knowledge + (0,) * (self.lora_nums - knowledge)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether it is a number that a float can hold: neither NaN, nor infinite, nor of thousands of digits."""
    largest: Any = sys.float_info.max  # compared exactly, where float(value) would overflow
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-largest <= value <= largest)


def _is_list(value: object, holds: Callable[[object], bool]) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(map(holds, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_patterns(value: object, holds: Callable[[object], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and holds(v) for k, v in value.items())


# What the fields of a configuration may hold (None apart, where that is the default): a file need not keep to it. The
# other fields have checks of their own.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("lora_alpha", "lora_dropout", "blc_alpha", "blc_weight"), (_is_number, "a finite number")),
    **dict.fromkeys(("use_rslora", "inference_mode"), (lambda value: isinstance(value, bool), "true or false")),
    **dict.fromkeys(("task_type", "base_model_name_or_path", "revision"), (_is_text, "text")),
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_pattern"),
        (lambda value: _is_text(value) or _is_list(value, _is_text), "text, or a list of texts"),
    ),
    "modules_to_save": (lambda value: _is_list(value, _is_text), "a list of texts"),
    "expert_types": (lambda value: _is_list(value, _is_whole), "a list of whole numbers"),
    "layers_to_transform": (
        lambda value: _is_whole(value) or _is_list(value, _is_whole),
        "a whole number, or a list of them",
    ),
    "rank_pattern": (lambda value: _is_patterns(value, _is_whole), "names mapped to whole numbers"),
    "alpha_pattern": (lambda value: _is_patterns(value, _is_number), "names mapped to finite numbers"),
}


def _check_types(config: LoraMoeConfig) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name, (fits, expected) in _TYPES.items():
        value = getattr(config, name)
        if not (fits(value) or (value is None and defaults[name] is None)):
            raise ValueError(f"{name} must be {expected}; got {name}={reprlib.repr(value)}.")
    _check_expressions(config)


def _check_expressions(config: LoraMoeConfig) -> None:
    """Checks what PEFT takes for regular expressions: keys of mappings, a text of names, patterns, modules to save."""
    layers = config.layers_pattern or ()
    expressions = [e for e in (config.target_modules, config.exclude_modules) if isinstance(e, str)]
    parts = [*config.rank_pattern, *config.alpha_pattern, *([layers] if isinstance(layers, str) else layers)]
    parts += config.modules_to_save or ()
    for expression in [*expressions, *(f"(.*)({part})" for part in parts)]:
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{reprlib.repr(expression)} should be a regular expression, and is none ({error}). Repair it in "
                "target_modules, exclude_modules, layers_pattern, rank_pattern, alpha_pattern or modules_to_save."
            ) from error


def _check_experts(config: LoraMoeConfig) -> None:
    for name in ("r", "lora_nums"):
        value = getattr(config, name)
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {name}={reprlib.repr(value)}.")
    if not 0 <= config.lora_dropout < 1:
        raise ValueError(f"lora_dropout must be a probability in [0, 1); got lora_dropout={config.lora_dropout}.")
    if not isinstance(config.init_lora_weights, bool):
        raise ValueError(
            "init_lora_weights must be True (B = 0) or False (B drawn at random); LoRAMoE knows no other start. "
            f"Got init_lora_weights={config.init_lora_weights!r}."
        )
    bad_ranks = {name: rank for name, rank in config.rank_pattern.items() if rank < 1}
    if bad_ranks:
        raise ValueError(f"rank_pattern must map to ranks of at least 1; got {bad_ranks}.")
    rank = max([config.r, *config.rank_pattern.values()])
    if rank * config.lora_nums > MAX_ROWS:
        raise ValueError(
            f"r × lora_nums must be at most {MAX_ROWS:,}; got r={reprlib.repr(rank)} and "
            f"lora_nums={reprlib.repr(config.lora_nums)}. Set lower ones."
        )


def _check_constraint(config: LoraMoeConfig) -> None:
    if config.blc_weight < 0:
        raise ValueError(
            f"blc_weight must not be negative; got blc_weight={config.blc_weight}. Set 0 to switch it off."
        )
    if config.lora_nums < 2 and config.blc_weight > 0:
        raise ValueError(
            f"lora_nums must be at least 2 for a balancing constraint; got lora_nums={config.lora_nums} with "
            f"blc_weight={config.blc_weight}. Set blc_weight=0, or lora_nums=2 or more."
        )
    if not 0 <= config.blc_alpha < 1:
        raise ValueError(
            f"blc_alpha must be in [0, 1), so that no sample's importance vanishes; got blc_alpha={config.blc_alpha}."
        )
    if config.blc_target not in BLC_TARGETS:
        raise ValueError(f"blc_target must be one of {list(BLC_TARGETS)}; got blc_target={config.blc_target!r}.")
    if config.expert_types is not None:
        _check_expert_types(config.expert_types, config.lora_nums)


def _check_expert_types(expert_types: list[int], lora_nums: int) -> None:
    if len(expert_types) != lora_nums:
        raise ValueError(
            f"expert_types must name the type of each of the lora_nums={lora_nums} experts; "
            f"got {len(expert_types)} types: {reprlib.repr(expert_types)}."
        )
    if not all(0 <= t < 2**63 for t in expert_types):  # they are compared with the samples' types, in int64
        raise ValueError(f"expert_types must be whole numbers of at least 0; got {reprlib.repr(expert_types)}.")


def _check_layers(config: LoraMoeConfig) -> None:
    if config.layers_pattern is not None and config.layers_to_transform is None:
        raise ValueError(
            f"layers_pattern={config.layers_pattern!r} says where the layers of layers_to_transform are counted, which "
            "is not set. Set layers_to_transform too, or leave layers_pattern out."
        )
    if not isinstance(config.target_modules, str):
        return
    if config.layers_to_transform is not None:
        raise ValueError(
            "layers_to_transform works with a list of target_modules, not with a string; got "
            f"layers_to_transform={config.layers_to_transform!r} with target_modules={config.target_modules!r}. "
            "Pass a list, or write the layers into the expression."
        )
