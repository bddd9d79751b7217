"""Every touch of a private or changing part of peft and transformers, and nothing else.

Each function names what it touches and the versions that differ. The rest of the library is written as if there were
one version of each. All extensions are idempotent: a second call finds the first one's work and leaves it.

peft and torch are imported inside the functions, because some of these run in the midst of peft's or transformers' own
import. What must subclass a class of peft is in `legacy.py`; how files of adapters are read, in `compat_files.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from packaging.version import Version

if TYPE_CHECKING:
    from torch import Tensor, nn

# What the original release writes into adapter_config.json and its code never reads again, with the only values it
# writes.
ORIGINAL_ONLY: dict[str, Any] = {"enable_lora": None, "merge_weights": False}
COUNTS_EVERY_LABEL = Version(importlib.metadata.version("transformers")) < Version("5.10")


def register() -> None:
    """Register LoRAMoE with the installed peft: type, classes, `LoraConfig(lora_nums=…)`, files of the original."""
    import peft
    from peft.config import PeftConfigMixin
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType
    from transformers.integrations.peft import PeftAdapterMixin

    from loramoe.compat_files import (
        extend_config_files,
        extend_load_adapter,
        extend_load_peft_weights,
        extend_set_weights,
    )

    extend_peft_type(PeftType)
    from loramoe.config import LoraMoeConfig
    from loramoe.model import LoraMoeModel

    if PeftType("LORAMOE") not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from peft.utils import register_peft_method

        register_peft_method(name="loramoe", config_cls=LoraMoeConfig, model_cls=LoraMoeModel)
    for public in (LoraMoeConfig, LoraMoeModel):
        setattr(peft, public.__name__, public)
    extend_lora_config(peft.LoraConfig)
    extend_config_files(PeftConfigMixin)
    extend_load_peft_weights()
    extend_set_weights()
    extend_load_adapter(PeftAdapterMixin)


def extend_peft_type(peft_type: Any) -> None:
    """Give the closed enum `PeftType` the member LORAMOE, as its class body would have (enum of Python 3.10 to 3.13).

    A bare string would not do: transformers reads `.peft_type.value`, and an adapter's JSON is looked up in the enum.

    Args:
        peft_type: `peft.utils.peft_types.PeftType`.
    """
    name = "LORAMOE"
    if name in peft_type.__members__:
        return
    member = str.__new__(peft_type, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = peft_type
    member._sort_order_ = len(peft_type.__members__)
    type.__setattr__(peft_type, name, member)
    peft_type._member_names_.append(name)
    peft_type._member_map_[name] = member
    peft_type._value2member_map_[name] = member
    hashable_values = vars(peft_type).get("_hashable_values_")  # later patch releases of Python 3.12 and 3.13 have it
    if hashable_values is not None:
        hashable_values.append(name)


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

    # Where a class has a `__new__`, inspect.signature shows that; it must show the fields as before.
    __new__.__signature__ = inspect.signature(lora_config.__init__)  # type: ignore[attr-defined,misc]
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
            f"{', '.join(f'{k}={v!r}' for k, v in foreign.items())}. Leave it out, or leave lora_nums out for plain "
            "LoRA."
        )
    return LoraMoeConfig(**{k: v for k, v in given.items() if k in known})


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def skips_first_label(model: nn.Module) -> bool:
    """Whether the Trainer leaves the first label of each row out of `num_items_in_batch`; before 5.10 it never does.

    Args:
        model: The model that is given the labels.

    Returns:
        True where its `loss_type` is that of a loss which shifts labels; False, too, where it has none.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return not COUNTS_EVERY_LABEL and LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss


def extend_label_smoother(label_smoother: type) -> None:
    """Have the Trainer's label smoothing count the constraint.

    With smoothing, the Trainer keeps the labels and computes the loss itself from the logits, so there is no
    `outputs.loss` to add to; the constraint then comes as `outputs.balance_loss` (see `hooks.py`), and is added here
    with the same share of the step as the smoothed loss: `num_items_in_batch` is passed since transformers 5.15, before
    that each micro-batch counts whole.

    Args:
        label_smoother: `transformers.trainer_pt_utils.LabelSmoother`.
    """
    from loramoe.balance import balance_loss

    smooth: Callable[..., Tensor] = label_smoother.__call__
    if "__wrapped__" in vars(smooth):
        return

    @functools.wraps(smooth)
    def __call__(self: Any, model_output: Any, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss = smooth(self, model_output, labels, *args, **kwargs)
        return loss + balance_loss(model_output, labels, kwargs.get("num_items_in_batch"), loss.device)

    label_smoother.__call__ = __call__  # type: ignore[method-assign]


def extend_sft_trainer(sft_trainer: type) -> None:
    """Have TRL's SFTTrainer count the constraint.

    Since TRL 1.x its default loss is summed from `outputs.log_probs` of a fused head, and `outputs.loss` is not looked
    at.

    Args:
        sft_trainer: `trl.trainer.sft_trainer.SFTTrainer`.
    """
    from loramoe.balance import share_of_step
    from loramoe.hooks import handing_over

    compute = sft_trainer.compute_loss  # type: ignore[attr-defined]
    if "__wrapped__" in vars(compute):
        return

    @functools.wraps(compute)
    def compute_loss(
        self: Any, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with handing_over(model) as taken:
            result = compute(self, model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = result if return_outputs else (result,)
        # A forward without gradient is one that TRL makes for its metrics.
        balance_losses = [weighted.to(loss.device) for weighted in taken if weighted.requires_grad]
        if balance_losses:
            call = {"labels": inputs["labels"], "num_items_in_batch": num_items_in_batch}
            share = share_of_step(call, vars(self).get("_loss_shifts_labels", False), loss.device)
            over_ranks = self.args.average_tokens_across_devices and num_items_in_batch is not None
            loss = loss + share * sum(balance_losses) * (self.accelerator.num_processes if over_ranks else 1)
        return (loss, *outputs) if return_outputs else loss

    sft_trainer.compute_loss = compute_loss  # type: ignore[attr-defined]


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
        ValueError: If the module is no linear: an embedding, a convolution, an attention, or one that an adapter
            trains whole.
    """
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
    from torch import nn

    no_linear = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention, AuxiliaryTrainingWrapper)
    if not isinstance(base_layer, no_linear):
        layer = LoraLayer(base_layer)
        if layer.in_features is not None:
            return int(layer.in_features), int(layer.out_features)
    raise ValueError(
        f"LoRAMoE adapts linear layers; got {type(base_layer).__name__}. Leave it out of target_modules, or name it in "
        "exclude_modules."
    )


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a module that is read and never called.

    Where accelerate has offloaded a model's modules to memory or disk, it brings the weights of each back when that
    module is called, by the hook that it keeps as `_hf_hook`; at rest they are empty, on the meta device.

    Args:
        module: A linear.

    Returns:
        Its weight, on the device where it is needed.
    """
    if "_hf_hook" not in vars(module):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight
    from accelerate.utils import align_module_device

    with align_module_device(module):
        offloaded: Tensor = module.weight  # type: ignore[assignment]
        return offloaded


def keep_gradients(model: nn.Module) -> None:
    """Has 4-bit linears of bitsandbytes pass the gradient on, whatever the model is asked first.

    On a CPU with AVX512-BF16, bitsandbytes (0.50, `Linear4bit.forward`) packs a weight anew when it is first used in
    evaluation mode, and for good. What then multiplies it has no backward, so that in a training that begins with an
    evaluation all layers below would silently get a wrong gradient.

    Args:
        model: A model that is to be trained.

    Raises:
        ValueError: If a weight has been packed already.
    """
    for name, module in model.named_modules():
        if "support_avx512bf16_for_cpu" not in vars(module):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError(
                f"{name} is a 4-bit linear that bitsandbytes has packed for inference on this CPU, through which no "
                "gradient passes. Load the base model again, and add the adapter before it is first used."
            )
        module.support_avx512bf16_for_cpu = False
