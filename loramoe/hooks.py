"""Where the constraint meets the forward: two hooks on the base model, whichever way the adapter came into it.

The hook before takes `task_types` out of the call and has the adapted linears keep their gates; the hook after takes
the gates, computes the constraint of all linears at once and, in training, adds it to `outputs.loss`. The layers know
nothing of task types, and the model knows nothing of LoRAMoE. Hooks on the base model, and not an overridden forward,
because an adapter injected by `model.load_adapter` or `inject_adapter_in_model` leaves no other object of ours behind.

The gates are taken right after the forward: under gradient checkpointing the linears run a second time in backward,
unwatched.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from loramoe.balance import coefficient, importance, localized_balance
from loramoe.config import LoraMoeConfig
from loramoe.layer import LoraMoeLayer

IGNORE_INDEX = -100  # label of a token that has no loss, in all of transformers


@dataclass(frozen=True)
class Balance:
    """What the constraint saw in one forward, detached from the graph.

    Attributes:
        constraint: Sum over the linears of the localized balancing constraint, unweighted, a float32 scalar.
        constraint_L: The constraint of each adapted linear.
        gate_TLE: Mean gate over the real tokens of each task type, for each linear and expert; sums to 1 over the
            experts.
        tokens_T: Number of real tokens of each task type.
        task_types: The T task types that the batch held, ascending.
        expert_types: Type of each expert.
        linears: Names of the L adapted linears.
    """

    constraint: Tensor
    constraint_L: Tensor
    gate_TLE: Tensor
    tokens_T: Tensor
    task_types: tuple[int, ...]
    expert_types: tuple[int, ...]
    linears: tuple[str, ...]


def last_balance(model: nn.Module, adapter_name: str | None = None) -> Balance | None:
    """What the constraint saw in the model's last forward that was given task types, in training or evaluation.

    Args:
        model: The adapted model, or a PeftModel, or any module around it.
        adapter_name: Which adapter; by default the first that was active.

    Returns:
        A Balance; None if there was no such forward, or the model has no LoRAMoE adapter.
    """
    for module in model.modules():
        watcher = _watcher_of(module)
        if watcher is not None and watcher.last:
            return watcher.last.get(adapter_name or next(iter(watcher.last)))
    return None


def watch(model: nn.Module, adapter_name: str, config: LoraMoeConfig) -> None:
    """Put the two hooks on a base model, once, and have them serve an adapter.

    Args:
        model: The model whose linears are adapted, and whose forward returns the loss.
        adapter_name: Name of the adapter.
        config: Its configuration; a later change of its blc_weight takes effect at the next forward.
    """
    watcher = _watcher_of(model)
    if watcher is None:
        watcher = BalanceWatcher()
        model.register_forward_pre_hook(watcher.before, with_kwargs=True)
        model.register_forward_hook(watcher.after, with_kwargs=True)
    watcher.configs[adapter_name] = config


def unwatch(model: nn.Module) -> None:
    """Take the two hooks off a base model.

    Args:
        model: The model that `watch` was called on; any other is left as it is.
    """
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), BalanceWatcher):
                del hooks[key]


def share_of_step(call: Mapping[str, Any]) -> Tensor | float:
    """The share of an optimizer step that a micro-batch's loss stands for.

    Given `num_items_in_batch`, the LM loss of a micro-batch is a sum over its label tokens divided by the label tokens
    of the whole step (all accumulated micro-batches, all ranks). The constraint needs the same factor, or it would
    count once for every micro-batch.

    Args:
        call: What the model was called with, by name: `labels` or `shift_labels`, and `num_items_in_batch`.

    Returns:
        This micro-batch's label tokens / num_items_in_batch; 1 where no `num_items_in_batch` was given.
    """
    items = call.get("num_items_in_batch")
    if items is None:
        return 1.0
    shifted = call.get("shift_labels")
    labels: Tensor = call["labels"][..., 1:] if shifted is None else shifted  # the first token is never predicted
    return (labels != IGNORE_INDEX).sum() / torch.as_tensor(items, device=labels.device)


class BalanceWatcher:
    """The two hooks, and what passes from the first to the second.

    Attributes:
        configs: Configuration of each adapter that came into the model.
        last: For each active adapter, what the constraint saw in the last forward that was given task types.
    """

    def __init__(self) -> None:
        self.configs: dict[str, LoraMoeConfig] = {}
        self.last: dict[str, Balance] = {}
        self._task_types: Tensor | None = None
        self._reminded = False

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take `task_types` out of the call and, if they were there, have the adapted linears keep their gates."""
        self._task_types = kwargs.get("task_types")
        if self._task_types is None:
            self._remind(model, kwargs)
        else:
            for layer in _adapted_linears(model).values():
                layer.watched = True
        return args, {name: value for name, value in kwargs.items() if name != "task_types"}

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Compute the constraint from the gates that were kept, remember it, and in training add it to the loss."""
        if self._task_types is None:
            return None
        task_types, self._task_types, self.last = self._task_types, None, {}
        call = _by_name(model, args, kwargs)
        gates = _take_gates(_adapted_linears(model))
        weighted = [self._balance(model, name, gates[name], task_types, call) for name in gates]
        if not model.training or not weighted or all(self.configs[name].blc_weight == 0 for name in gates):
            return None
        return _add_to_loss(outputs, torch.stack(weighted).sum(), call)

    def _balance(
        self, model: nn.Module, name: str, gates: dict[str, Tensor], task_types: Tensor, call: Mapping[str, Any]
    ) -> Tensor:
        """The weighted constraint of one adapter, over all its linears; what it saw is kept in `last`."""
        config = self.configs[name]
        device = next(iter(gates.values())).device
        mask_BS = _real_tokens(model, call, task_types).to(device)
        Q_LME = torch.stack([importance(_by_sample(k, g.to(device), mask_BS), mask_BS) for k, g in gates.items()])
        if config.lora_nums == 1:  # a single expert has no type, and nothing to be balanced with
            constraint_L = Q_LME.new_zeros(len(gates))
        else:
            I_ME = coefficient(task_types.to(device), config.types_of_experts, config.blc_alpha, config.blc_target)
            constraint_L = localized_balance(Q_LME, I_ME)
        if config.blc_weight > 0:
            _check_gradient(model, name, gates)
        self.last[name] = _summary(config, tuple(gates), constraint_L, Q_LME, task_types, mask_BS)
        return config.blc_weight * constraint_L.sum()

    def _remind(self, model: nn.Module, kwargs: Mapping[str, Any]) -> None:
        weights = {name: config.blc_weight for name, config in self.configs.items() if config.blc_weight > 0}
        in_training = model.training and torch.is_grad_enabled() and kwargs.get("labels") is not None
        if weights and in_training and not self._reminded:
            self._reminded = True
            name, weight = next(iter(weights.items()))
            warnings.warn(
                f"adapter {name!r} has blc_weight={weight}, but this training batch came without task_types, so its "
                "loss has no balancing constraint. Pass task_types (with the Trainer: remove_unused_columns=False, and a "
                "collator that keeps the column), or set blc_weight=0.",
                stacklevel=2,
            )


def _watcher_of(model: nn.Module) -> BalanceWatcher | None:
    hooks = (getattr(hook, "__self__", None) for hook in model._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, BalanceWatcher)), None)


def _adapted_linears(model: nn.Module) -> dict[str, LoraMoeLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraMoeLayer)}


def _take_gates(layers: Mapping[str, LoraMoeLayer]) -> dict[str, dict[str, Tensor]]:
    """Gates of each adapter and linear; the layers keep none, nor does a later run (checkpointing's second one)."""
    gates: dict[str, dict[str, Tensor]] = {}
    for linear, layer in layers.items():
        for adapter, kept in layer.gates.items():
            gates.setdefault(adapter, {})[linear] = kept
        layer.gates, layer.watched = {}, False
    return gates


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    if not args:
        return kwargs
    return dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | dict(kwargs)


def _real_tokens(model: nn.Module, call: Mapping[str, Any], task_types: Tensor) -> Tensor:
    """Mask of the tokens that are no padding, bool [B, S]."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"task_types are for decoder-only models; {type(model).__name__} is an encoder-decoder, whose linears see "
            "two different sequences. Leave task_types out, and set blc_weight=0."
        )
    tokens: Tensor = call["inputs_embeds"] if call.get("input_ids") is None else call["input_ids"]
    B, S = tokens.shape[:2]
    if len(task_types) != B:
        raise ValueError(f"task_types must hold one type for each of the B={B} samples; got {len(task_types)}.")
    mask: Tensor | None = call.get("attention_mask")
    if mask is None:
        return torch.ones(B, S, dtype=torch.bool, device=tokens.device)
    if mask.dim() != 2:
        raise ValueError(
            f"with task_types, attention_mask must be [B, S], to tell padding from real tokens; got {list(mask.shape)}."
        )
    return mask[:, -S:].bool()  # with a KV cache the mask also covers the past


def _by_sample(linear: str, gates: Tensor, mask_BS: Tensor) -> Tensor:
    """Gates [..., E] of one linear as [B, S, E]; some architectures flatten samples and tokens into one dimension."""
    if gates.shape[:-1].numel() != mask_BS.numel():
        raise ValueError(
            f"{linear} saw {gates.shape[:-1].numel()} tokens, the batch has {list(mask_BS.shape)} = {mask_BS.numel()}: "
            "the constraint needs linears that see each token once. Name it in exclude_modules, or leave task_types out."
        )
    return gates.reshape(*mask_BS.shape, gates.shape[-1])


def _check_gradient(model: nn.Module, adapter: str, gates: Mapping[str, Tensor]) -> None:
    if not (model.training and torch.is_grad_enabled()):
        return
    for linear, kept in gates.items():
        router = cast(LoraMoeLayer, model.get_submodule(linear)).weights(adapter)[0]
        if router.requires_grad and not kept.requires_grad:
            raise RuntimeError(
                f"the gates of {linear} carry no gradient, so the constraint could not train its router. Gradient "
                "checkpointing with use_reentrant=True does this. Set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )


def _add_to_loss(outputs: Any, weighted: Tensor, call: Mapping[str, Any]) -> Any:
    """Add the constraint's share to the loss; hand it over as `balance_loss` where the model computed no loss."""
    has_labels = call.get("labels") is not None or call.get("shift_labels") is not None
    if isinstance(outputs, tuple):
        if not has_labels:
            raise ValueError(
                "without labels the constraint needs an output with names. Call the model with return_dict=True."
            )
        return (outputs[0] + share_of_step(call) * weighted.to(outputs[0].device), *outputs[1:])
    loss = outputs.get("loss")
    if loss is None:
        outputs["balance_loss"] = weighted
    else:
        outputs["loss"] = loss + share_of_step(call) * weighted.to(loss.device)
    return outputs


@torch.no_grad()
def _summary(
    config: LoraMoeConfig,
    linears: tuple[str, ...],
    constraint_L: Tensor,
    Q_LME: Tensor,
    task_types: Tensor,
    mask_BS: Tensor,
) -> Balance:
    present = tuple(sorted(set(task_types.tolist())))
    is_type_TM = torch.stack([task_types.to(Q_LME.device) == t for t in present]).to(Q_LME.dtype)
    tokens_T = is_type_TM @ mask_BS.sum(-1).to(Q_LME.dtype)
    gate_TLE = torch.einsum("tm,lme->tle", is_type_TM, Q_LME) / tokens_T[:, None, None]
    return Balance(
        constraint=constraint_L.sum().detach(),
        constraint_L=constraint_L.detach(),
        gate_TLE=gate_TLE,
        tokens_T=tokens_T,
        task_types=present,
        expert_types=config.types_of_experts,
        linears=linears,
    )
