"""Every touch of a private or changing part of peft and transformers, and nothing else.

Each function names what it touches and the versions that differ. The rest of the library is written as if there were
one version of each. All extensions are idempotent: a second call finds the first one's work and leaves it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from typing import Any

import peft
from packaging.version import Version
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from peft.utils.peft_types import PeftType
from torch import Tensor, nn

PEFT_VERSION = Version(importlib.metadata.version("peft"))
LEGACY_PEFT = PEFT_VERSION < Version("0.18")

# What the original release writes into adapter_config.json and its code never reads again, with the only values it
# writes.
ORIGINAL_ONLY: dict[str, Any] = {"enable_lora": None, "merge_weights": False}


def register() -> None:
    """Register LoRAMoE with the installed peft: type, classes, `LoraConfig(lora_nums=…)`, files of the original."""
    extend_peft_type()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from loramoe.config import LoraMoeConfig
    from loramoe.model import LoraMoeModel

    if PeftType("LORAMOE") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from peft.utils import register_peft_method

        register_peft_method(name="loramoe", config_cls=LoraMoeConfig, model_cls=LoraMoeModel)
    for public in (LoraMoeConfig, LoraMoeModel):
        setattr(peft, public.__name__, public)
    extend_lora_config(peft.LoraConfig)
    extend_load_peft_weights()


def extend_peft_type() -> None:
    """Give the closed enum `PeftType` the member LORAMOE, as its class body would have (enum of Python 3.10 to 3.13).

    A bare string would not do: transformers reads `.peft_type.value`, and an adapter's JSON is looked up in the enum.
    """
    name = "LORAMOE"
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    if sys.version_info >= (3, 13):
        PeftType._hashable_values_.append(name)


def extend_lora_config(lora_config: type) -> None:
    """Make `LoraConfig(lora_nums=…)` return a LoraMoeConfig; everything else about LoraConfig stays as it is.

    `__new__` of the class itself is given, so that no name has to be bound anew and `isinstance(AdaLoraConfig(),
    LoraConfig)` stays True. What `__new__` returns is no LoraConfig, so Python does not call `__init__` on it.

    Args:
        lora_config: peft's LoraConfig.
    """
    if "__new__" in vars(lora_config):
        return

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is lora_config and kwargs.get("lora_nums") is not None:
            return _mixture_config(cls, *args, **kwargs)
        return object.__new__(cls)

    lora_config.__new__ = __new__  # type: ignore[assignment]


def _mixture_config(lora_config: type, *args: Any, **kwargs: Any) -> Any:
    from loramoe.config import LoraMoeConfig

    fields = {f.name: f for f in dataclasses.fields(lora_config) if f.init}
    given = dict(zip(fields, args, strict=False)) | kwargs
    known = {f.name for f in dataclasses.fields(LoraMoeConfig) if f.init} - {"peft_type"}
    inert = {name: _default(f) for name, f in fields.items() if name not in known} | ORIGINAL_ONLY
    # The layer only calls its base, so which way round a Conv1D keeps its weight does not matter.
    ignored = {"peft_type", "fan_in_fan_out"}
    foreign = {k: v for k, v in given.items() if k not in known | ignored and not (k in inert and inert[k] == v)}
    if foreign:
        raise ValueError(
            f"LoraConfig(lora_nums={given['lora_nums']}) makes a mixture of LoRA experts, which does not know "
            f"{', '.join(f'{k}={v!r}' for k, v in foreign.items())}. Leave it out, or leave lora_nums out for plain LoRA."
        )
    return LoraMoeConfig(**{k: v for k, v in given.items() if k in known})


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def extend_load_peft_weights() -> None:
    """Have adapter files of the original release read as stacked experts, wherever peft or transformers reads a file.

    The name is bound in four modules of peft; transformers imports it from there at each use.
    """
    from peft.utils import save_and_load

    from loramoe.checkpoint import is_original, stack_experts

    read = save_and_load.load_peft_weights
    if "__wrapped__" in vars(read):
        return

    @functools.wraps(read)
    def load_peft_weights(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = read(*args, **kwargs)
        return stack_experts(weights) if is_original(weights) else weights

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "peft" and vars(module).get("load_peft_weights") is read:
            module.load_peft_weights = load_peft_weights  # type: ignore[attr-defined]


def extend_label_smoother(label_smoother: type) -> None:
    """Have the Trainer's label smoothing count the constraint.

    With smoothing, the Trainer keeps the labels and computes the loss itself from the logits, so there is no
    `outputs.loss` to add to; the constraint then comes as `outputs.balance_loss` (see `hooks.py`), and is added here
    with the same share of the step as the smoothed loss: `num_items_in_batch` is passed since transformers 5, before
    that each micro-batch counts whole.

    Args:
        label_smoother: `transformers.trainer_pt_utils.LabelSmoother`.
    """
    from loramoe.hooks import share_of_step

    smooth = label_smoother.__call__  # type: ignore[operator]
    if "__wrapped__" in vars(smooth):
        return

    @functools.wraps(smooth)
    def __call__(self: Any, model_output: Any, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = smooth(self, model_output, labels, *args, **kwargs)
        balance_loss = model_output.get("balance_loss") if isinstance(model_output, dict) else None
        if balance_loss is None:
            return loss
        share = share_of_step({"labels": labels, "num_items_in_batch": kwargs.get("num_items_in_batch")})
        return loss + share * balance_loss.to(loss.device)

    label_smoother.__call__ = __call__  # type: ignore[operator]


def declare_task_types(model_class: type) -> None:
    """Add `task_types=None` to the signature that a model's forward shows.

    The Trainer reads that signature to tell which columns of a data set the model can use.

    Args:
        model_class: A model of transformers, such as LlamaForCausalLM.
    """
    forward: Callable[..., Any] = model_class.forward  # type: ignore[attr-defined]
    signature = inspect.signature(forward)
    if "task_types" in signature.parameters:
        return
    *named, last = signature.parameters.values()
    declared = inspect.Parameter(
        "task_types", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="torch.LongTensor | None"
    )
    around = [*named, declared, last] if last.kind is inspect.Parameter.VAR_KEYWORD else [*named, last, declared]
    forward.__signature__ = signature.replace(parameters=around)  # type: ignore[attr-defined]


def in_out_features(base_layer: nn.Module) -> tuple[int, int]:
    """In- and out-features of a linear of any kind, as peft's own LoRA tells them (quantised, Conv1D, Megatron, …).

    Args:
        base_layer: A linear.

    Returns:
        D and F.

    Raises:
        ValueError: If the module is no linear: an embedding, a convolution, an attention.
    """
    no_linear = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    if not isinstance(base_layer, no_linear):
        layer = LoraLayer(base_layer)
        if layer.in_features is not None:
            return int(layer.in_features), int(layer.out_features)
    raise ValueError(
        f"LoRAMoE adapts linear layers; got {type(base_layer).__name__}. Leave it out of target_modules, or name it in "
        "exclude_modules."
    )


class LegacyTuner(BaseTuner):  # type: ignore[misc]  # peft is not typed
    """What every tuner had to write for itself before peft 0.18, which moved it into BaseTuner."""

    prefix: str
    tuner_layer_cls: type[BaseTunerLayer]

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        return check_target_module_exists(peft_config, key)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if self.prefix not in name:
                parameter.requires_grad = False

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not set yet: looking it up on itself would not end
                raise
            return getattr(self.model, name)

    def _enable_adapters(self, enabled: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
                module.enable_adapters(enabled)

    def enable_adapter_layers(self) -> None:
        """Enable all adapters."""
        self._enable_adapters(True)

    def disable_adapter_layers(self) -> None:
        """Disable all adapters."""
        self._enable_adapters(False)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Make one or several adapters the active ones.

        Args:
            adapter_name: Its name, or their names.
        """
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                module.set_adapter(adapter_name)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter.

        Args:
            adapter_name: Its name.

        Raises:
            ValueError: If there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        del self.peft_config[adapter_name]
        left: list[str] | None = None
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):
                module.delete_adapter(adapter_name)
                left = module.active_adapters[:] if left is None else left
        self.active_adapter = left or []
        self._delete_auxiliary_adapter(adapter_name, new_active_adapters=left)

    def unload(self) -> nn.Module:
        """Take all adapters off.

        Returns:
            The base model.
        """
        for name, module in list(self.model.named_modules()):
            parent_name, _, child_name = name.rpartition(".")
            if isinstance(module, self.tuner_layer_cls):
                setattr(self.model.get_submodule(parent_name), child_name, module.get_base_layer())
            elif isinstance(module, ModulesToSaveWrapper):
                setattr(
                    self.model.get_submodule(parent_name), child_name, module.modules_to_save[module.active_adapter]
                )
        return self.model


TunerBase: Any = LegacyTuner if LEGACY_PEFT else BaseTuner
