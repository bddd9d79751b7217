"""What peft keeps closed: its list of methods, what LoraConfig makes, and how weights are put on a model.

A second call of an extension changes nothing. Configurations and weights of other methods pass through unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# What the original code writes into adapter_config.json and never reads, with the only values it writes.
ORIGINAL_ONLY: dict[str, Any] = {"enable_lora": None, "merge_weights": False}
IGNORED_FIELDS = {"peft_type", "fan_in_fan_out"}  # a base layer is only called, so how it keeps its weight is its own

Rename = Callable[["dict[str, Tensor]"], "dict[str, Tensor]"]
Validate = Callable[["nn.Module", "dict[str, Tensor]", str, bool], None]


def extend_peft_type(peft_type: Any) -> None:
    """Give the closed enum `PeftType` the member LORAMOE, as its class body would have (enum of Python 3.10 to 3.13).

    A bare string is not enough: transformers reads `.peft_type.value`, and an adapter's JSON is looked up in the enum.
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
    """Have `LoraConfig(lora_nums=…)` return a LoraMoeConfig, by a `__new__` that leaves everything else as it was."""
    if "__new__" in vars(lora_config):
        return

    def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is lora_config and kwargs.get("lora_nums") is not None:
            return _mixture_config(cls, *args, **kwargs)
        return object.__new__(cls)

    # Where a class has a `__new__`, inspect.signature shows that; it has to show the fields as before.
    __new__.__signature__ = inspect.signature(lora_config.__init__)  # type: ignore[attr-defined,misc]
    lora_config.__new__ = __new__  # type: ignore[assignment]


def _mixture_config(lora_config: type, *args: Any, **kwargs: Any) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils.peft_types import PeftType

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("LORAMOE")]
    fields = {f.name: f for f in dataclasses.fields(lora_config) if f.init}
    given = dict(zip(fields, args, strict=False)) | kwargs
    known = {f.name for f in dataclasses.fields(config_class) if f.init} - {"peft_type"}
    defaults = {k: f.default_factory() if callable(f.default_factory) else f.default for k, f in fields.items()}
    unused = {name: default for name, default in defaults.items() if name not in known} | ORIGINAL_ONLY
    unknown = {k: v for k, v in given.items() if k not in known | IGNORED_FIELDS}
    foreign = {k: v for k, v in unknown.items() if k not in unused or unused[k] != v}
    if foreign:
        raise ValueError(
            f"LoraConfig(lora_nums={given['lora_nums']}) makes a mixture of LoRA experts, which does not know "
            f"{', '.join(f'{k}={v!r}' for k, v in foreign.items())}. Leave it out, or leave lora_nums out for plain "
            "LoRA."
        )
    from_file = {"peft_type": "LORAMOE"} if given.get("peft_type") is not None else {}
    return config_class(**from_file, **{k: v for k, v in given.items() if k in known})


def in_out_features(base_layer: nn.Module) -> tuple[int, int]:
    """Return in- and out-features of a linear layer of any kind, as peft's own LoRA reads them."""
    from peft.tuners.tuners_utils import _get_in_out_features

    with warnings.catch_warnings():  # about classes that it does not know, of which it then asks in_features
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        in_features, out_features = _get_in_out_features(base_layer)
    if in_features is None:
        raise ValueError(f"LoRAMoE adapts linear layers; got {type(base_layer).__name__}. Set exclude_modules.")
    return int(in_features), int(out_features)


def extend_set_state_dict(rename: Rename, validate: Validate) -> None:
    """Have a LoRAMoE adapter's weights renamed and checked before peft puts them on a model.

    peft would stop half way at a wrong shape, and only warn of weights that are missing.
    """
    from peft.utils import save_and_load

    put = save_and_load.set_peft_model_state_dict
    if "__wrapped__" in vars(put):
        return

    @functools.wraps(put)
    def set_peft_model_state_dict(
        model: nn.Module,
        peft_model_state_dict: dict[str, Tensor],
        adapter_name: str = "default",
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        if _is_loramoe(model.peft_config[adapter_name]):  # type: ignore[index]
            peft_model_state_dict = rename(peft_model_state_dict)
            validate(model, peft_model_state_dict, adapter_name, not ignore_mismatched_sizes)
        return put(model, peft_model_state_dict, adapter_name, ignore_mismatched_sizes, **kwargs)

    for name, module in list(sys.modules.items()):  # each module of peft that has imported it by name
        if name.split(".")[0] == "peft" and vars(module).get("set_peft_model_state_dict") is put:
            module.set_peft_model_state_dict = set_peft_model_state_dict  # type: ignore[attr-defined]


def extend_load_adapter(mixin: type, rename: Rename, validate: Validate) -> None:
    """Have `model.load_adapter`, and from_pretrained of an adapter, take adapters with names of an earlier format.

    transformers 5 reads the weights by itself, and logs those that are missing. Weights that it is given it takes.
    """
    load = mixin.load_adapter  # type: ignore[attr-defined]
    if "__wrapped__" in vars(load):
        return

    @functools.wraps(load)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(load).bind(self, *args, **kwargs).arguments
        adapter, options = call.get("peft_model_id"), getattr(call.get("load_config"), "download_kwargs", None) or {}
        hub = {name: value for name, value in options.items() if value is not None} | (call.get("adapter_kwargs") or {})
        if adapter is None or call.get("adapter_state_dict") is not None or not _is_loramoe_at(adapter, hub):
            return load(self, *args, **kwargs)
        from peft.utils import load_peft_weights

        weights = rename(load_peft_weights(adapter, device="cpu", **hub))
        check = functools.partial(validate, self, weights, call.get("adapter_name") or "default", True)
        try:
            info = load(self, *args, **kwargs, adapter_state_dict=weights)
        except RuntimeError:  # a wrong shape, which transformers does not name
            check()
            raise
        if info is not None and (info.missing_keys or info.unexpected_keys):
            check()
        return info

    mixin.load_adapter = load_adapter  # type: ignore[attr-defined]


def _is_loramoe_at(adapter: str, hub: dict[str, Any]) -> bool:
    from peft import PeftConfig

    try:
        return _is_loramoe(PeftConfig.from_pretrained(adapter, **hub))
    except (KeyError, OSError, TypeError, ValueError):  # whatever is wrong, transformers says it
        return False


def _is_loramoe(config: Any) -> bool:
    return str(getattr(config.peft_type, "value", config.peft_type)) == "LORAMOE"
