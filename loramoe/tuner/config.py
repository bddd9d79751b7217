"""Configuration of a LoRAMoE adapter; the defaults are those of the paper (arXiv 2312.09979, implementation details).

A file without `blc_target` or `blc_importance` is older than these fields: it means "paper" and "sum".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from loramoe.balance.constraint import BLC_IMPORTANCES, BLC_TARGETS, BlcImportance, BlcTarget


@dataclass
class LoraMoeConfig(PeftConfig):  # type: ignore[misc]  # peft is not typed
    """Configuration of a LoRAMoE adapter: N LoRA experts and a softmax router in parallel to each adapted linear layer.

    Args:
        r: Rank R of each expert.
        lora_alpha: The experts' sum is scaled by lora_alpha / r.
        lora_dropout: Dropout probability on the experts' input, in [0, 1). The router's input is not dropped.
        lora_nums: Number of experts E.
        blc_alpha: a of the constraint, in [0, 1): the degree of imbalance between the groups of experts.
        blc_weight: Weight of the constraint in the training loss; 0 switches it off.
        blc_target: "match": the experts of a sample's type get more gate weight; "paper": less, as in the original
            code. Default: "match"; in a file that does not say, "paper".
        blc_importance: Importance of an expert for a sample: the "mean" or the "sum" of its gates over the sample's
            tokens. Default: "mean"; in a file that does not say, "sum".
        expert_types: Type of each expert, E ints. Default: the first E // 2 have type 1 (knowledge), the rest type 0.
        target_modules: Names, suffixes or a regular expression of the linear layers to adapt, or "all-linear".
            Default: the linear layers of the MLP, for known architectures.
        exclude_modules: Names, suffixes or a regular expression of layers to leave out.
        use_rslora: Scale by lora_alpha / √r instead (rank-stabilised LoRA, arXiv 2312.03732).
        init_lora_weights: True: B starts at zero, so the adapted model starts as the base model. False: B is random.
        modules_to_save: Modules that are trained and saved whole, next to the experts.
        layers_to_transform: Index, or indices, of the layers to adapt. Default: all.
        layers_pattern: Name of the list of layers, where it is not the usual one.
        rank_pattern: Names or regular expressions of layers, mapped to a rank other than r.
        alpha_pattern: Names or regular expressions of layers, mapped to an alpha other than lora_alpha.
        bias: Only "none": biases are not trained.
    """

    r: int = 4
    lora_alpha: float = 32
    lora_dropout: float = 0.05
    lora_nums: int = 8
    blc_alpha: float = 0.1
    blc_weight: float = 0.1
    expert_types: list[int] | None = None
    blc_target: BlcTarget = None  # type: ignore[assignment]  # until __post_init__
    blc_importance: BlcImportance = None  # type: ignore[assignment]  # until __post_init__
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    use_rslora: bool = False
    init_lora_weights: bool = True
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"

    def __post_init__(self) -> None:
        from_file = vars(self)["peft_type"] is not None  # then it is read from a file, or a dict like it
        super().__post_init__()
        self.peft_type = PeftType("LORAMOE")
        self.blc_target = self.blc_target or ("paper" if from_file else "match")
        self.blc_importance = self.blc_importance or ("sum" if from_file else "mean")
        self.layers_pattern = self.layers_pattern or None
        self.rank_pattern = dict(self.rank_pattern or {})
        self.alpha_pattern = dict(self.alpha_pattern or {})
        for name in ("target_modules", "exclude_modules"):  # as PEFT keeps them
            if isinstance(getattr(self, name), (list, tuple)):
                setattr(self, name, set(getattr(self, name)))
        self._check_experts()
        self._check_constraint()
        self._check_layers()

    @property
    def types_of_experts(self) -> tuple[int, ...]:
        """Type of each of the E experts: `expert_types`, or else the first E // 2 have type 1 and the rest type 0."""
        if self.expert_types is not None:
            return tuple(self.expert_types)
        knowledge = self.lora_nums // 2
        return (1,) * knowledge + (0,) * (self.lora_nums - knowledge)

    def _check_experts(self) -> None:
        self.r = _whole("r", self.r, 1)
        self.lora_nums = _whole("lora_nums", self.lora_nums, 1)
        self.rank_pattern = {name: _whole(f"rank_pattern[{name!r}]", r, 1) for name, r in self.rank_pattern.items()}
        self.lora_alpha = _number("lora_alpha", self.lora_alpha, -math.inf, math.inf)
        self.lora_dropout = _number("lora_dropout", self.lora_dropout, 0, 1)
        for name, alpha in self.alpha_pattern.items():
            self.alpha_pattern[name] = _number(f"alpha_pattern[{name!r}]", alpha, -math.inf, math.inf)
        _one_of("init_lora_weights", self.init_lora_weights, (True, False))
        _one_of("bias", self.bias, ("none",))

    def _check_constraint(self) -> None:
        self.blc_weight = _number("blc_weight", self.blc_weight, 0, math.inf)
        self.blc_alpha = _number("blc_alpha", self.blc_alpha, 0, 1)
        _one_of("blc_target", self.blc_target, BLC_TARGETS)
        _one_of("blc_importance", self.blc_importance, BLC_IMPORTANCES)
        if self.lora_nums < 2 and self.blc_weight > 0:
            raise ValueError(
                f"lora_nums must be at least 2 for a balancing constraint; got lora_nums={self.lora_nums} with "
                f"blc_weight={self.blc_weight}. Set blc_weight=0, or lora_nums=2 or more."
            )
        if self.expert_types is not None:
            self.expert_types = [_whole("a type in expert_types", value, 0) for value in self.expert_types]
            if len(self.expert_types) != self.lora_nums:
                raise ValueError(
                    f"expert_types must name the type of each of the lora_nums={self.lora_nums} experts; got "
                    f"{len(self.expert_types)} types: {self.expert_types}."
                )

    def _check_layers(self) -> None:
        layers: Any = self.layers_to_transform
        if layers is not None:
            whole = partial(_whole, "layers_to_transform", minimum=0)
            self.layers_to_transform = whole(layers) if isinstance(layers, (Integral, str)) else [*map(whole, layers)]
        if self.layers_pattern is not None and layers is None:
            raise ValueError(
                f"layers_pattern={self.layers_pattern!r} names the list in which layers_to_transform counts. Set "
                "layers_to_transform too, or leave layers_pattern out."
            )
        if isinstance(self.target_modules, str) and layers is not None:
            raise ValueError(
                f"layers_to_transform={layers!r} works with a list of target_modules, not with the string "
                f"{self.target_modules!r}. Pass a list, or write the layers into the expression."
            )


def _whole(name: str, value: Any, minimum: int) -> int:
    """Return a value as int; numpy's integers too, which JSON does not write."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}; got {value!r}.")
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    """Return a value as int or float; numpy's floats too, which JSON does not write."""
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) < high or value == -math.inf:
        raise ValueError(f"{name} must be a number in [{low}, {high}); got {name}={value!r}.")
    return value if isinstance(value, int) else float(value)


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known or isinstance(value, bool) is not isinstance(known[0], bool):
        raise ValueError(f"{name} must be one of {list(known)}; got {name}={value!r}. Nothing else is supported.")
