"""The arms: what is trained beside or in place of the frozen base, each with as many parameters as the next.

A recipe is what an arm is made of; a study changes one of its values. LoRAMoE's default is the paper's: 8 experts of
rank 4 beside each linear of the MLP, scaled by 32 / 4, dropout 0.05.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from loramoe import LoraMoeConfig, LoraMoeLayer
from loramoe.ops import mixture, route
from loramoe.tuner.forward_pass import thread_state

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Kind = Literal["base", "full", "lora", "loramoe"]


@dataclass(frozen=True)
class Recipe:
    """What LoRAMoE and LoRA are made of, and how they are trained.

    Attributes:
        targets: Linears that are adapted.
        r: Rank of each expert; of LoRA, its rank.
        lora_alpha: The experts' sum is scaled by lora_alpha / r.
        lora_dropout: Dropout on their input.
        lora_nums: Number of experts.
        blc_weight: Weight of the constraint.
        blc_alpha: Its degree.
        blc_target: Its direction.
        blc_warmup: Share of the steps over which its weight rises from 0, in a straight line.
        zero_experts: So many experts, of type 1 (the first ones), whose B stays zero: where they are chosen, the base
            answers.
        router_scale: Factor of the router's weights at the start; 0: all gates equal.
        router_rate: Learning rate of the routers, in learning rates. Both at 1 / T are a router of temperature T:
            AdamW's steps know nothing of a gradient's size.
        rate_B: Learning rate of B, in learning rates (LoRA+, arXiv 2402.12354, has 16 or so).
        use_rslora: Scale by lora_alpha / sqrt(r) (arXiv 2312.03732).
        detached: Whether the router's input is detached, so that it teaches nothing to the layers before it.
        replay: Share of the rows of type 1 that tell facts as the base model has read them, in place of questions.
        grouped: Whether a step's rows are of about one length. If not, they are as they come; the constraint then
            pushes both types of rows to the same experts, as rows of type 1 are the shorter ones (docs/method.md).
        epochs: How often the rows are gone through, each time in another order, on one schedule.
    """

    targets: tuple[str, ...] = MLP
    r: int = 4
    lora_alpha: float = 32
    lora_dropout: float = 0.05
    lora_nums: int = 8
    blc_weight: float = 0.0
    blc_alpha: float = 0.1
    blc_target: Literal["paper", "match"] = "paper"
    blc_warmup: float = 0.0
    zero_experts: int = 0
    router_scale: float = 1.0
    router_rate: float = 1.0
    rate_B: float = 1.0
    use_rslora: bool = False
    detached: bool = False
    replay: float = 0.0
    grouped: bool = True
    epochs: int = 1


@dataclass(frozen=True)
class Arm:
    """A way to fine-tune.

    Attributes:
        label: Its name in words.
        kind: What is trained.
        recipe: Of what it is made; for `base` and `full` it means no more than how rows are grouped.
    """

    label: str
    kind: Kind
    recipe: Recipe = field(default_factory=Recipe)


# Ranks give each arm as many parameters as the paper's experts and routers have, within what whole ranks allow: from 90
# to 102 % of them, on both base models.
ARMS: Mapping[str, Arm] = {
    "base": Arm("the base model", "base"),
    "full": Arm("full fine-tuning", "full"),
    "lora_mlp": Arm("LoRA on the MLP", "lora", Recipe(r=35, lora_alpha=70)),
    "lora_all": Arm("LoRA on attention and MLP", "lora", Recipe(r=21, lora_alpha=42, targets=(*ATTENTION, *MLP))),
    "loramoe_free": Arm("LoRAMoE without the constraint", "loramoe"),
    "loramoe_paper": Arm("LoRAMoE as in the paper", "loramoe", Recipe(blc_weight=0.1)),
    "loramoe_match": Arm("LoRAMoE, the other direction", "loramoe", Recipe(blc_weight=0.1, blc_target="match")),
    "loramoe_all": Arm(
        "LoRAMoE on attention and MLP",
        "loramoe",
        Recipe(r=2, lora_alpha=16, blc_weight=0.1, targets=(*ATTENTION, *MLP)),
    ),
}


def recipe_of(arm: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of an arm with some values changed.

    Args:
        arm: Name of the arm.
        changes: Values by field of Recipe.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is no such arm or field.
    """
    if arm not in ARMS:
        raise ValueError(f"there is no arm {arm!r}. Choose one of {', '.join(ARMS)}.")
    unknown = changes.keys() - {f.name for f in dataclasses.fields(Recipe)}
    if unknown:
        raise ValueError(f"a recipe has no {sorted(unknown)}. It has {[f.name for f in dataclasses.fields(Recipe)]}.")
    return dataclasses.replace(ARMS[arm].recipe, **changes)


def prepare(model: Any, kind: Kind, recipe: Recipe) -> Any:
    """Puts on the base model what an arm trains.

    Args:
        model: The base model, in float32.
        kind: Of the arm.
        recipe: Of the arm.

    Returns:
        The model to train; for LoRA and LoRAMoE a PeftModel.
    """
    if kind in ("base", "full"):
        return model
    shared: dict[str, Any] = {
        "r": recipe.r,
        "lora_alpha": recipe.lora_alpha,
        "lora_dropout": recipe.lora_dropout,
        "target_modules": list(recipe.targets),
        "use_rslora": recipe.use_rslora,
        "task_type": "CAUSAL_LM",
    }
    if kind == "lora":
        return get_peft_model(model, LoraConfig(**shared))
    constraint = {name: getattr(recipe, name) for name in ("lora_nums", "blc_weight", "blc_alpha", "blc_target")}
    model = get_peft_model(model, LoraMoeConfig(**shared, **constraint, blc_importance="sum"))  # as the published runs
    for layer in _layers(model):
        router, _, B = layer.weights("default")
        router.data.mul_(recipe.router_scale)
        if recipe.zero_experts:
            B.register_hook(_ZeroFirst(recipe.zero_experts * layer.r["default"]))  # type: ignore[no-untyped-call]
        if recipe.detached:
            layer._add_mixture = partial(_add_detached, layer)  # type: ignore[method-assign]
    return model


class _ZeroFirst:
    """Takes the gradient from the first columns of B, [F, E·R], which so stay as they are: zero."""

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def __call__(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, : self.columns] = 0
        return gradient


def _add_detached(layer: LoraMoeLayer, adapter_name: str, y: Tensor, x: Tensor) -> Tensor:
    """What the layer adds, with no gradient from the gates to x."""
    router, A, B = layer.weights(adapter_name)
    gates = route(x.detach(), router)
    if thread_state.passes:
        thread_state.passes[-1].add(adapter_name, layer.key, gates, router)
    experts = layer.loramoe_experts[adapter_name]
    dropped = functional.dropout(x, experts.dropout, experts.training)
    return y + mixture(dropped, gates, A, B, layer.scaling[adapter_name]).to(y.dtype)


def _layers(model: nn.Module) -> list[LoraMoeLayer]:
    return [module for module in model.modules() if isinstance(module, LoraMoeLayer)]


def parameter_groups(model: nn.Module, recipe: Recipe, learning_rate: float) -> list[dict[str, Any]]:
    """What an optimizer is made of: what is trained, with the learning rates that the recipe gives to each part.

    Args:
        model: What `prepare` returned.
        recipe: Of the arm.
        learning_rate: Of all that the recipe says nothing of.

    Returns:
        Groups of parameters, each with `lr`.
    """
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = recipe.router_rate if name.endswith(".router") else 1.0
            factor = recipe.rate_B if name.endswith(".B") or "lora_B" in name else factor
            groups.setdefault(factor * learning_rate, []).append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in groups.items()]


def set_blc_weight(model: Any, recipe: Recipe, progress: float) -> None:
    """Sets the constraint's weight for a step.

    Args:
        model: What `prepare` returned.
        recipe: Of the arm.
        progress: Share of the steps that are done, from 0 to 1.
    """
    if recipe.blc_warmup:
        model.peft_config["default"].blc_weight = recipe.blc_weight * min(1.0, progress / recipe.blc_warmup)


def trainable(model: nn.Module) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
