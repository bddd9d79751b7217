"""Where the constraint enters the loss: two hooks on the base model, however the adapter came into it.

The hook before the forward takes `task_types` out of the call and opens a forward pass, to which the adapted layers add
their gates. The hook after it computes the constraint of all layers and, in training, adds it to `outputs.loss`. Hooks,
because after `model.load_adapter` or `inject_adapter_in_model` there is no PeftModel whose forward could do this.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loramoe.balance.constraint import COUNTED_LABELS, Membership, coefficient, localized_balance, share_of_step
from loramoe.compat.trainers import skips_first_label
from loramoe.ops import without_autocast
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.forward_pass import (
    arguments_by_name,
    close_pass,
    membership_of,
    open_pass,
    thread_state,
    validate_samples,
    validate_task_types,
)
from loramoe.tuner.layer import LoraMoeLayer


@dataclass(frozen=True)
class BalanceStats:
    """What the constraint saw in one forward pass, detached; figures by task type are computed when they are read.

    Attributes:
        constraint_L: The localized balancing constraint of each of the L adapted layers, unweighted, float32.
        importance_LME: Importance of each expert for each sample: the mean or the sum of its gates, as `kind` says.
        tokens_M: Number of real tokens of each sample.
        entropy_LM: Mean entropy of the gates of a sample's tokens, in nats; None where gradients are computed.
    """

    constraint_L: Tensor
    importance_LME: Tensor
    kind: str
    tokens_M: Tensor
    task_types_M: Tensor
    expert_types: tuple[int, ...]
    layers: tuple[str, ...]  # their names
    entropy_LM: Tensor | None = None

    @property
    def constraint(self) -> Tensor:
        """Sum over the layers of the constraint, unweighted, a scalar."""
        return self.constraint_L.sum()

    @property
    def task_types(self) -> tuple[int, ...]:
        """The T task types of which the batch held a real token, ascending."""
        return tuple(sorted(set(self.task_types_M[self.tokens_M > 0].tolist())))

    @property
    def tokens_T(self) -> Tensor:
        """Number of real tokens of each task type."""
        return self._is_type_TM() @ self.tokens_M

    @property
    def gate_TLE(self) -> Tensor:
        """Mean gate over the real tokens of each task type, for each layer and expert; sums to 1 over the experts."""
        weight_TM = self._is_type_TM() if self.kind == "sum" else self._is_type_TM() * self.tokens_M
        sum_TLE = torch.einsum("tm,lme->tle", weight_TM.to(self.importance_LME), self.importance_LME)
        return sum_TLE / self.tokens_T[:, None, None]

    def _is_type_TM(self) -> Tensor:
        types_T = torch.tensor(self.task_types, dtype=self.task_types_M.dtype, device=self.task_types_M.device)
        return (types_T[:, None] == self.task_types_M).to(self.tokens_M)


def last_balance(model: nn.Module, adapter_name: str | None = None) -> BalanceStats | None:
    """Return what the constraint saw in the model's last forward pass with task types, or None if there was none.

    Args:
        model: The adapted model, or any module around it.
        adapter_name: Which adapter. Default: the first that was active.
    """
    for hooks in balance_hooks(model):
        if hooks.last:
            return hooks.last.get(adapter_name or next(iter(hooks.last)))
    return None


def balance_hooks(model: nn.Module) -> Iterator[BalanceHooks]:
    """Yield the hooks of each adapted model in a module."""
    for module in model.modules():
        owners = (getattr(hook, "__self__", None) for hook in module._forward_hooks.values())
        yield from (owner for owner in owners if isinstance(owner, BalanceHooks))


def attach_hooks(model: nn.Module, adapter_name: str, config: LoraMoeConfig) -> None:
    """Register the two hooks on a base model, once, for one more adapter."""
    hooks = next((hooks for hooks in balance_hooks(model) if hooks.before in model._forward_pre_hooks.values()), None)
    if hooks is None:
        hooks = BalanceHooks()
        model.register_forward_pre_hook(hooks.before, with_kwargs=True)
        model.register_forward_hook(hooks.after, with_kwargs=True, always_call=True)
    hooks.configs[adapter_name] = config


def detach_hooks(model: nn.Module) -> None:
    """Remove the two hooks from a base model, if it has them."""
    for registered in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(registered.items()):
            if isinstance(getattr(hook, "__self__", None), BalanceHooks):
                del registered[key]


class BalanceHooks:
    """The two hooks of a base model.

    Attributes:
        configs: Configuration of each adapter of the model.
        last: For each active adapter, what the constraint saw in the last forward pass with task types.
    """

    def __init__(self) -> None:
        self.configs: dict[str, LoraMoeConfig] = {}
        self.last: dict[str, BalanceStats] = {}
        self._warned = False

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take `task_types` out of the call, and open a forward pass that knows the samples of the batch."""
        kwargs = dict(kwargs)
        task_types = kwargs.pop("task_types", None)
        forward_pass = open_pass(model)
        if task_types is None:
            self._warn_missing_task_types(model, args, kwargs)
            return args, kwargs
        validate_task_types(model, task_types)
        forward_pass.membership = membership_of(model, arguments_by_name(model, args, kwargs), task_types)
        forward_pass.task_types_M = task_types
        if len(task_types) != forward_pass.membership.shape[0] and _takes_use_cache(model):
            kwargs["use_cache"] = False  # with a cache, transformers would let the samples of a row see each other
        return args, kwargs

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Close the pass, compute the constraint, and in training add it to the loss."""
        forward_pass = close_pass(model)
        if outputs is None or forward_pass is None:  # the forward failed
            return None
        samples, task_types_M = forward_pass.membership, forward_pass.task_types_M
        if samples is None or task_types_M is None:
            return None
        self.last = {}
        weighted = [self._balance(name, samples, task_types_M, forward_pass.gates[name]) for name in forward_pass.gates]
        configs = [self.configs[name] for name in forward_pass.gates]
        types = [config.types_of_experts for config in configs if config.lora_nums > 1]  # a single one serves all types
        validate_samples(samples, task_types_M, types)
        if not model.training or all(config.blc_weight == 0 for config in configs):
            return None
        if forward_pass.without_gradient and torch.is_grad_enabled():
            raise RuntimeError(
                f"the gates of {forward_pass.without_gradient[0]} carry no gradient, so the constraint cannot train "
                "its router. For gradient checkpointing set gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        call = arguments_by_name(model, args, kwargs)
        return add_to_loss(outputs, torch.stack(weighted).sum(), call, skips_first_label(model))

    def _balance(self, name: str, samples: Membership, task_types_M: Tensor, by_layer: Mapping[str, Tensor]) -> Tensor:
        """The weighted constraint of one adapter, over all its layers; its statistics are kept in `last`."""
        config = self.configs[name]
        device = next(iter(by_layer.values())).device
        with without_autocast(device.type):
            tokens_M, types_M = samples.tokens_M.to(device), task_types_M.to(device)
            of_layers = [samples.importance(gates, config.blc_importance).to(device) for gates in by_layer.values()]
            Q_LME = torch.stack(of_layers)
            coefficient_ME = coefficient(types_M, config.types_of_experts, config.blc_alpha, config.blc_target)
            constraint_L = localized_balance(Q_LME, coefficient_ME, tokens_M > 0)
            observed = [] if torch.is_grad_enabled() else list(by_layer.values())
            entropy_LM1 = [samples.importance(torch.special.entr(g).sum(-1, True)).to(device) for g in observed]
            self.last[name] = BalanceStats(
                constraint_L=constraint_L.detach(),
                importance_LME=Q_LME.detach(),
                kind=config.blc_importance,
                tokens_M=tokens_M,
                task_types_M=types_M,
                expert_types=config.types_of_experts,
                layers=tuple(by_layer),
                entropy_LM=torch.stack(entropy_LM1).squeeze(-1) if entropy_LM1 else None,
            )
            return config.blc_weight * constraint_L.sum()

    def _warn_missing_task_types(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Warn once if a training batch has no task types: one with labels, or with a Trainer that keeps its labels."""
        due = {name: config.blc_weight for name, config in self.configs.items() if config.blc_weight > 0}
        if self._warned or not due or not (model.training and torch.is_grad_enabled()):
            return
        call = arguments_by_name(model, args, kwargs)
        if call.get("labels") is None and call.get("num_items_in_batch") is None:
            return
        active = {name for m in model.modules() if isinstance(m, LoraMoeLayer) for name in m.adapters_in_use}
        for name in [name for name in due if name in active][:1]:
            self._warned = True
            warnings.warn(
                f"adapter {name!r} has blc_weight={due[name]}, but this training batch came without task_types, so it "
                "has no balancing constraint. Pass task_types (the collator has to keep them), or set blc_weight=0.",
                stacklevel=2,
            )


def _takes_use_cache(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    passed_on = hasattr(getattr(model, "config", None), "use_cache")  # by `**kwargs`, to the model below a head
    return any(p.name == "use_cache" or (passed_on and p.kind is p.VAR_KEYWORD) for p in parameters)


def add_to_loss(outputs: Any, weighted: Tensor, call: Mapping[str, Any], skips_first: bool) -> Any:
    """Return outputs with the constraint in their loss; a mapping without a loss gets it as `balance_loss`."""
    if thread_state.collected:
        thread_state.collected[-1].append(weighted)
        return outputs
    loss = _loss_of(outputs, any(call.get(name) is not None for name in COUNTED_LABELS))
    if loss is None and isinstance(outputs, Mapping):
        _warn_if_lost(outputs, weighted)
        return _with(outputs, balance_loss=weighted, skips_first_label=skips_first)
    if loss is None:
        raise ValueError(
            f"the model returned a {type(outputs).__name__} without a loss, to which the constraint cannot be added. "
            "Call it with labels or return_dict=True, or around it use loramoe.collect_aux_loss()."
        )
    loss = loss + share_of_step(call, skips_first, loss.device) * weighted.to(loss.device)
    if isinstance(outputs, Tensor):
        return loss
    return (loss, *outputs[1:]) if isinstance(outputs, tuple) else _with(outputs, loss=loss)


def _loss_of(outputs: Any, has_labels: bool) -> Tensor | None:
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    if isinstance(outputs, (tuple, Tensor)):
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return first if has_labels and isinstance(first, Tensor) and first.dim() == 0 else None
    return getattr(outputs, "loss", None)


def _warn_if_lost(outputs: Mapping[str, Any], weighted: Tensor) -> None:
    """Warn if a backward pass through outputs leaves the constraint out, as from a head above an adapted trunk."""
    if not weighted.requires_grad or torch.compiler.is_compiling():
        return
    reached: list[Tensor] = []
    weighted.register_hook(reached.append)  # type: ignore[no-untyped-call]

    def check() -> None:
        if not reached:
            warnings.warn(
                "the constraint did not reach the loss, which leaves outputs.balance_loss out. Adapt the whole model, "
                "not the part below its head, or add loramoe.balance_loss(outputs, labels, num_items_in_batch) to it.",
                stacklevel=1,
            )

    call_at_end = torch.autograd.Variable._execution_engine.queue_callback  # of the backward pass that is running
    for output in outputs.values():
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: call_at_end(check))  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
@functools.cache
def _with_fields(kind: type, names: tuple[str, ...]) -> type:
    """A subclass of transformers' ModelOutput with more fields: DDP and FSDP rebuild outputs from declared fields."""
    fields = [(name, Any, None) for name in names]
    return dataclasses.make_dataclass(f"{kind.__name__}WithBalance", fields, bases=(kind,))


def _with(outputs: Any, **values: Any) -> Any:
    if not isinstance(outputs, MutableMapping):
        return dataclasses.replace(outputs, **values)
    declared = getattr(outputs, "__dataclass_fields__", values)
    if not declared.keys() >= values.keys():
        values = {**outputs, **values}
        return _with_fields(type(outputs), tuple(name for name in values if name not in declared))(**values)
    for name, value in values.items():  # transformers' ModelOutput has no update()
        outputs[name] = value
    return outputs
