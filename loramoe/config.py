"""Configuration of the LoRAMoE tuner: what PEFT users know of LoraConfig, plus the experts and their constraint.

Defaults are the paper's (arXiv 2312.09979, implementation details, and the released launcher), with the constraint on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig
from peft.utils.peft_types import PeftType

from loramoe.balance import BLC_TARGETS, BlcTarget


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
        super().__post_init__()
        self.peft_type = PeftType("LORAMOE")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT keeps its own
        if isinstance(self.exclude_modules, list):
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


def _check_experts(config: LoraMoeConfig) -> None:
    for name in ("r", "lora_nums"):
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {name}={value!r}.")
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
            f"got {len(expert_types)} types: {expert_types}."
        )
    if any(not isinstance(t, int) or isinstance(t, bool) or t < 0 for t in expert_types):
        raise ValueError(f"expert_types must be whole numbers of at least 0; got {expert_types}.")


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
