"""Where the constraint meets the forward: two hooks on the base model, whichever way the adapter came into it.

The hook before takes `task_types` out of the call and has the adapted linears keep their gates; the hook after takes
the gates, computes the constraint of all linears at once and, in training, adds it to `outputs.loss`. The layers know
nothing of task types, and the model knows nothing of LoRAMoE. Hooks on the base model, and not an overridden forward,
because an adapter injected by `model.load_adapter` or `inject_adapter_in_model` leaves no other object of ours behind.

The gates are taken right after the forward: under gradient checkpointing the linears run a second time in backward,
unwatched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from loramoe.balance import coefficient, importance, localized_balance, share_of_step
from loramoe.compat import skips_first_label
from loramoe.config import LoraMoeConfig
from loramoe.layer import LoraMoeLayer
from loramoe.mixture import without_autocast
from loramoe.observed import Balance, summary
from loramoe.samples import Samples, by_name, samples_of


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


@contextmanager
def handing_over(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the weighted constraint of each forward is handed over, instead of being added to `outputs.loss`.

    For those who compute the loss from something else that the model returns, as TRL's SFTTrainer does.

    Args:
        model: The adapted model, or any module around it.

    Yields:
        A list that each training forward with task types and labels appends its weighted constraint to.
    """
    watchers = [watcher for module in model.modules() if (watcher := _watcher_of(module)) is not None]
    taken: list[Tensor] = []
    for watcher in watchers:
        watcher.taken = taken
    try:
        yield taken
    finally:
        for watcher in watchers:
            watcher.taken = None


class BalanceWatcher:
    """The two hooks, and what passes from the first to the second: the samples, and the gates that the layers kept.

    Attributes:
        configs: Configuration of each adapter that came into the model.
        last: For each active adapter, what the constraint saw in the last forward that was given task types.
        taken: Where to put the weighted constraint while it is handed over; None while it is added to the loss.
    """

    def __init__(self) -> None:
        self.configs: dict[str, LoraMoeConfig] = {}
        self.last: dict[str, Balance] = {}
        self.taken: list[Tensor] | None = None
        self._task_types: Tensor | None = None
        self._samples: Samples | None = None
        self._types_present: tuple[int, ...] = ()
        self._reminded = False

    def before(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take `task_types` out of the call and, if they were there, have the adapted linears keep their gates."""
        if self._task_types is not None:  # the last forward failed half-way, and left its gates
            _take_gates(_adapted_linears(model))
        self._task_types = None
        if kwargs.get("task_types") is None:
            self._remind(model, args, kwargs)
        else:
            _refuse_replica(model)
            task_types = _on_host(kwargs["task_types"])
            self._samples = samples_of(model, by_name(model, args, kwargs), task_types)
            self._types_present = self._samples.types_present(task_types)
            self._task_types = task_types
            if self._samples.packed:  # with a cache, transformers would let the samples of a row see each other
                kwargs = {**kwargs, "use_cache": False}
            for layer in _adapted_linears(model).values():
                layer.watched, layer.gates = True, {}
        return args, {name: value for name, value in kwargs.items() if name != "task_types"}

    def after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Compute the constraint from the gates that were kept, remember it, and in training add it to the loss."""
        if self._task_types is None or self._samples is None:
            return None
        task_types, samples = self._task_types, self._samples
        self._task_types, self._samples, self.last = None, None, {}
        call = by_name(model, args, kwargs)
        gates = _take_gates(_adapted_linears(model))
        weighted = [self._balance(model, name, gates[name], task_types, samples) for name in gates]
        if not model.training or not weighted or all(self.configs[name].blc_weight == 0 for name in gates):
            return None
        return self._add_to_loss(outputs, torch.stack(weighted).sum(), call, skips_first_label(model))

    def _balance(
        self, model: nn.Module, name: str, gates: dict[str, Tensor], task_types: Tensor, samples: Samples
    ) -> Tensor:
        """The weighted constraint of one adapter, over all its linears; what it saw is kept in `last`."""
        config = self.configs[name]
        device = next(iter(gates.values())).device
        samples = samples.to(device)
        mask_MS = samples.mask_MS
        if config.blc_weight > 0:
            _check_gradient(model, name, gates)
        with without_autocast(device.type):
            Q_LME = torch.stack([importance(samples.gates(k, g.to(device)), mask_MS) for k, g in gates.items()])
            constraint_L = _constraint(config, Q_LME, task_types)
            self.last[name] = summary(
                config, tuple(gates), constraint_L, Q_LME, task_types, mask_MS, self._types_present
            )
            return config.blc_weight * constraint_L.sum()

    def _add_to_loss(self, outputs: Any, weighted: Tensor, call: Mapping[str, Any], skips_first: bool) -> Any:
        """Add the constraint's share to the loss; hand it over as `balance_loss` where the model computed no loss."""
        as_tuple = isinstance(outputs, tuple)
        if as_tuple and call.get("labels") is None:
            raise ValueError(
                "without labels the constraint needs an output with names. Call the model with return_dict=True."
            )
        loss: Tensor | None = outputs[0] if as_tuple else outputs.get("loss")
        if loss is None:
            outputs["balance_loss"] = weighted
            outputs["skips_first_label"] = skips_first  # who computes the loss has the labels, and not the model
            return outputs
        if self.taken is not None:
            self.taken.append(weighted)
            return outputs
        loss = loss + share_of_step(call, skips_first, loss.device) * weighted.to(loss.device)
        if as_tuple:
            return (loss, *outputs[1:])
        outputs["loss"] = loss
        return outputs

    def _remind(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Tell once of a training batch without task types.

        Such a batch has labels, or `num_items_in_batch` where whoever computes the loss has kept its labels, as the
        Trainer does for label smoothing and `compute_loss_func`.
        """
        due = {name: config.blc_weight for name, config in self.configs.items() if config.blc_weight > 0}
        if self._reminded or not due or not (model.training and torch.is_grad_enabled()):
            return
        call = by_name(model, args, kwargs)
        if call.get("labels") is None and call.get("num_items_in_batch") is None:
            return
        active = {name for layer in _adapted_linears(model).values() for name in layer.adapters_at_work}
        for name, weight in [(name, weight) for name, weight in due.items() if name in active][:1]:
            self._reminded = True
            warnings.warn(
                f"adapter {name!r} has blc_weight={weight}, but this training batch came without task_types, so "
                "its loss has no balancing constraint. Pass task_types (with the Trainer: remove_unused_columns=False, "
                "and a collator that keeps the column), or set blc_weight=0.",
                stacklevel=2,
            )


def _watcher_of(model: nn.Module) -> BalanceWatcher | None:
    hooks = (getattr(hook, "__self__", None) for hook in model._forward_hooks.values())
    return next((hook for hook in hooks if isinstance(hook, BalanceWatcher)), None)


def _refuse_replica(model: nn.Module) -> None:
    if getattr(model, "_is_replica", False):
        raise RuntimeError(
            "nn.DataParallel runs copies of the model in threads that share one constraint, and would mix their "
            "batches. Start one process for each GPU (torchrun --nproc_per_node N), or let it see only one "
            "(CUDA_VISIBLE_DEVICES=0)."
        )


def _on_host(task_types: Any) -> Tensor:
    """The task types on the host, before the forward is queued: what reads them later need not wait for it to end."""
    if not isinstance(task_types, Tensor) or task_types.dim() != 1:
        got = f"shape {list(task_types.shape)}" if isinstance(task_types, Tensor) else repr(task_types)
        raise ValueError(
            f"task_types must be one integer for each sample, a tensor [B] of int64; got {got}. Have the collator make "
            "it, as loramoe.data.SftCollator does, or give torch.tensor([1, 0]) for two samples."
        )
    return task_types.cpu()


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


def _constraint(config: LoraMoeConfig, Q_LME: Tensor, task_types: Tensor) -> Tensor:
    if config.lora_nums == 1:  # a single expert has no type, and nothing to be balanced with
        return Q_LME.new_zeros(len(Q_LME))
    I_ME = coefficient(task_types, config.types_of_experts, config.blc_alpha, config.blc_target)
    return localized_balance(Q_LME, I_ME.to(Q_LME.device))
