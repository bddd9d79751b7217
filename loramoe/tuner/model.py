"""The LoRAMoE tuner: puts the layers into a model, as PEFT's tuners do, and the constraint's hooks onto it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from loramoe.compat.bitsandbytes import disable_bnb_cpu_packing
from loramoe.compat.trainers import declare_task_types
from loramoe.ops import IMPLEMENTATIONS
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.hooks import attach_hooks, detach_hooks
from loramoe.tuner.layer import MERGE_REFUSED, LoraMoeLayer
from loramoe.tuner.targets import DEFAULT_TARGETS, default_targets, expand_all_linear, validate_targets

BASE = "__base__"  # in adapter_names: PEFT's word for a sample that takes no adapter
HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}  # those of PEFT's model classes
HALF = (torch.float16, torch.bfloat16)
MISCOUNTED = (
    "adapter_names must name an adapter for each sample of the batch; got {names} names, and {what}. Where a model "
    "flattens samples into tokens, call it once for each adapter, after set_adapter(name)."
)


class LoraMoeModel(BaseTuner):  # type: ignore[misc]  # peft is not typed
    """A model whose linear layers have LoRA experts and a router in parallel.

    Made by `get_peft_model(model, LoraMoeConfig(…))`, or by PeftModel, inject_adapter_in_model and model.load_adapter.
    """

    prefix = "loramoe_"
    tuner_layer_cls = LoraMoeLayer
    target_module_mapping = DEFAULT_TARGETS

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the adapted model as a module: its `forward` alone, as in peft 0.18, would leave the hooks out."""
        return self.model(*args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model, and attach the constraint's hooks."""
        config = self.peft_config[adapter_name]
        if config.target_modules is None:
            model_type = self.get_model_config(model).get("model_type")
            config.target_modules = default_targets(model, model_type)
        elif isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
            config.target_modules = expand_all_linear(model, config.task_type)
        if kwargs.get("state_dict") is None and not config.inference_mode:
            validate_targets(model, config)
        if not config.inference_mode:
            disable_bnb_cpu_packing(model)
            _name_heads_to_save(model, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        attach_hooks(model, adapter_name, config)
        declare_task_types(type(model))

    def _create_and_replace(
        self, config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, current_key: str, **_: Any
    ) -> None:
        if isinstance(target, LoraMoeLayer):
            target.update_layer(adapter_name, config)
            return
        layer = LoraMoeLayer(target, adapter_name, config, current_key)
        layer.implementation = next(_adapted_layers(self.model), layer).implementation
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep what is trained in float32; PEFT does so for the adapter's own layers alone."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype or self.peft_config[adapter_name].inference_mode:
            return
        for wrapper in self.model.modules():
            if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
                _train_in_float32(wrapper.modules_to_save[adapter_name])

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(MERGE_REFUSED)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Inside this context, sample i of the batch uses the adapter `adapter_names[i]`, if names are given."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training or kwargs.get("task_types") is not None:
            raise ValueError(
                "adapter_names mixes adapters in one batch, for evaluation alone and without task_types. Call "
                "model.eval() first, and leave task_types out."
            )
        if unknown := sorted(set(names) - {*self.peft_config, BASE}):
            raise ValueError(
                f"adapter_names must name adapters of the model, {list(self.peft_config)}, or {BASE!r} for none; got "
                f"{unknown}. Load them first, or correct the names."
            )
        samples = _batch_size(*args, **kwargs)
        if samples not in (None, len(names)):
            raise ValueError(MISCOUNTED.format(names=len(names), what=f"a batch of {samples}"))
        hook = partial(_pass_names, names, samples is not None)
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (LoraMoeLayer, ModulesToSaveWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the active one, the next takes its place."""
        before = self.active_adapters
        super().delete_adapter(adapter_name)
        if self.active_adapters and self.active_adapters != before:
            self.set_adapter(self.active_adapters)  # its modules_to_save too, which peft 0.21 leaves as they were

    def unload(self) -> nn.Module:
        """Take every adapter and the constraint's hooks off, and return the base model."""
        detach_hooks(self.model)
        base: nn.Module = super().unload()
        return base


def use_implementation(model: nn.Module, name: str) -> None:
    """Choose what computes the mixture in every LoRAMoE layer of a model, and in those of adapters added later.

    `"fused"`, the default, is fast. `"eager"` is plain PyTorch: for second derivatives, and where nothing may write to
    the output of a base layer, as under selective activation checkpointing. A compiled model always computes "eager".

    Args:
        model: A model with LoRAMoE layers, or one such layer.
        name: One of `loramoe.ops.IMPLEMENTATIONS`.

    Raises:
        ValueError: If there is no such implementation, or no such layer.
    """
    if name == "stacked":
        warnings.warn('The implementation "stacked" is now "eager".', FutureWarning, stacklevel=2)
        name = "eager"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {sorted(IMPLEMENTATIONS)}; got {name!r}.")
    layers = list(_adapted_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no LoRAMoE layer. Add an adapter with get_peft_model first.")
    for layer in layers:
        layer.implementation = name


def _adapted_layers(model: nn.Module) -> Iterator[LoraMoeLayer]:
    return (module for module in model.modules() if isinstance(module, LoraMoeLayer))


def _name_heads_to_save(model: nn.Module, config: LoraMoeConfig) -> None:
    """Add the head of a task to modules_to_save now; PEFT does so after the weights have been cast to float32."""
    given = config.modules_to_save or []
    heads = [head for head in HEADS.get(config.task_type, ()) if head not in given]
    found = [head for head in heads if any(name.endswith(head) for name, _ in model.named_modules())]
    if found:
        config.modules_to_save = [*given, *found]


def _train_in_float32(module: nn.Module) -> None:
    """Keep the weights of a trained copy in float32, and its output in the dtype that the base model expects."""
    dtypes = {parameter.dtype for parameter in module.parameters()} & set(HALF)
    if not dtypes:
        return
    module.float()
    module.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)
    module.register_forward_hook(partial(_outputs_to, dtypes.pop()))


def _inputs_to_float32(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tree_map_only(Tensor, lambda x: x.float() if x.dtype in HALF else x, (args, kwargs))


def _outputs_to(dtype: torch.dtype, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.dtype == torch.float32 else x, outputs)


def _batch_size(*args: Any, **kwargs: Any) -> int | None:
    """Number of samples of a call; None if PEFT did not pass the inputs on."""
    named = (kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds"))
    return next((len(inputs) for inputs in (*args[:1], *named) if isinstance(inputs, Tensor)), None)


def _pass_names(
    names: Sequence[str], beams_possible: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook that gives a module the adapter of each row of its input: of samples, or of their beams."""
    x: Tensor = next(iter((*args, *kwargs.values())))
    beams, rest = divmod(len(x), max(len(names), 1))
    flattened = isinstance(module, LoraMoeLayer) and x.dim() == 2  # [tokens, D]: of which sample?
    if rest or beams == 0 or (beams > 1 and (flattened or not beams_possible)):
        raise ValueError(MISCOUNTED.format(names=len(names), what=f"a module that is given {len(x)} rows"))
    return args, {**kwargs, "adapter_names": [name for name in names for _ in range(beams)]}
