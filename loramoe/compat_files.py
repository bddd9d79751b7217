"""Every touch of how peft and transformers read an adapter's files and put its weights on a model.

As in `compat.py`: version differences live here, all extensions are idempotent, and peft is imported inside the
functions. Adapters of other methods go through as before; only broken files get other words (see `adapter_files.py`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramoe.adapter_files import CONFIG, CheckpointError, check_tensors, damaged, read_config, weights_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from loramoe.fit import Linear


def extend_config_files(mixin: type) -> None:
    """Have a broken adapter_config.json told by its file and fault, where peft raises whatever it stumbles over.

    Args:
        mixin: `peft.config.PeftConfigMixin`, which reads the configurations of all methods.
    """
    read = mixin.from_json_file  # type: ignore[attr-defined]
    if "__wrapped__" in vars(read.__func__):
        return

    @functools.wraps(read.__func__)
    def from_json_file(cls: type, path_json_file: str, **kwargs: Any) -> Any:
        from peft.config import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        config = read_config(Path(path_json_file))
        kind = config.get("peft_type")
        given = "peft_type" in config or cls is PeftConfig  # a class of one method needs none
        if given and kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
            known = ", ".join(sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
            raise CheckpointError(
                f"{path_json_file}: peft_type={kind!r} is none that the installed peft knows ({known}). Update peft, "
                "or correct the file."
            )
        if taken := {"self", "cls"} & set(config):
            raise CheckpointError(f"{path_json_file}: an adapter has no field {min(taken)!r}. Remove it.")
        return read.__func__(cls, path_json_file, **kwargs)

    mixin.from_json_file = classmethod(from_json_file)  # type: ignore[attr-defined,arg-type]


def extend_load_peft_weights() -> None:
    """Have adapter files of the original release read as stacked experts, wherever peft or transformers reads a file.

    Damaged files of such adapters, and of ours, raise CheckpointError.
    """
    import torch
    from peft.utils import save_and_load

    from loramoe.checkpoint import is_original, stack_experts

    read = save_and_load.load_peft_weights
    if "__wrapped__" in vars(read):
        return

    @functools.wraps(read)
    def load_peft_weights(model_id: str, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        folder = Path(model_id, kwargs.get("subfolder") or "")
        file = weights_file(folder) if is_loramoe_folder(folder) else None
        try:
            weights: dict[str, Tensor] = read(model_id, *args, **kwargs)
        except Exception as error:  # of an unpickler, there is no end to the kinds
            if file is None or isinstance(error, torch.OutOfMemoryError):  # of the GPU: not the file's fault
                raise
            raise damaged(file, error) from error
        if file is not None:
            check_tensors(file, weights)
        return stack_experts(weights) if is_original(weights) else weights

    _bind_anew("load_peft_weights", read, load_peft_weights)


def _bind_anew(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Replaces a function in all modules of peft that have imported it; transformers imports it at each use."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "peft" and vars(module).get(name) is old:
            setattr(module, name, new)


def is_loramoe_folder(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of LoRAMoE, of the original release or ours, by its configuration.

    Args:
        folder: A folder, or any other name of a model: what is no folder is not looked for elsewhere.

    Returns:
        True if there is a configuration of type LORAMOE, or of type LORA with `lora_nums`.

    Raises:
        CheckpointError: If there is a configuration that cannot be read.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        return False
    config = read_config(file)
    kind = config.get("peft_type")
    return kind == "LORAMOE" or (kind == "LORA" and bool(config.get("lora_nums")))


def extend_set_weights() -> None:
    """Have weights checked before they are put on a model: peft would stop half way, or go on without some."""
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
        if not ignore_mismatched_sizes:
            check_weights_on(model, peft_model_state_dict, adapter_name)
        return put(model, peft_model_state_dict, adapter_name, ignore_mismatched_sizes, **kwargs)

    _bind_anew("set_peft_model_state_dict", put, set_peft_model_state_dict)


def extend_load_adapter(mixin: type) -> None:
    """Have `model.load_adapter`, and from_pretrained of an adapter's folder, read adapters of the original release.

    transformers 5 reads the files by itself, and of a local folder only safetensors (seen in 5.23); weights that it is
    handed it takes. It raises on shapes that are wrong without saying which, and only logs weights that are missing or
    left over. transformers 4 asks peft, for all of it.

    Args:
        mixin: `transformers.integrations.peft.PeftAdapterMixin`.
    """
    from peft.utils import save_and_load

    load = mixin.load_adapter  # type: ignore[attr-defined]
    if "__wrapped__" in vars(load):
        return

    @functools.wraps(load)
    def load_adapter(
        self: Any, peft_model_id: str | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        state_dict_given = len(args) > 1 or kwargs.get("adapter_state_dict") is not None  # after peft_config
        if peft_model_id is None or state_dict_given or not is_loramoe_folder(peft_model_id):
            return load(self, peft_model_id, adapter_name, *args, **kwargs)
        weights = save_and_load.load_peft_weights(peft_model_id, device="cpu")
        try:
            info = load(self, peft_model_id, adapter_name, *args, **kwargs | {"adapter_state_dict": weights})
        except RuntimeError:
            check_weights_on(self, weights, adapter_name or "default")
            raise
        if info is not None and (info.missing_keys or info.unexpected_keys):
            check_weights_on(self, weights, adapter_name or "default")
        return info

    mixin.load_adapter = load_adapter  # type: ignore[attr-defined]


def check_weights_on(model: nn.Module, weights: dict[str, Tensor], adapter_name: str) -> None:
    """Checks that weights fit the adapter of a model; adapters of other methods are not looked at.

    Args:
        model: A model with the adapter on it: a PeftModel, or one of transformers.
        weights: Tensors of the adapter, by name.
        adapter_name: Name of the adapter.

    Raises:
        CheckpointError: If they do not fit; see `loramoe.fit`.
    """
    from loramoe.config import LoraMoeConfig
    from loramoe.fit import check_fit

    config = model.peft_config[adapter_name]  # type: ignore[index]
    if isinstance(config, LoraMoeConfig):
        plain = {_plain(name): tensor for name, tensor in weights.items()}
        check_fit(config, plain, _linears(model, adapter_name), _saved(model, adapter_name))


def _plain(name: str) -> str:
    """A name without what wrappers put into it; a PeftModel's and its adapter file's have a prefix that others lack."""
    return name.removeprefix("base_model.model.").replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "")


def _linears(model: nn.Module, adapter_name: str) -> dict[str, Linear]:
    """What the layers were made for, and not their parameters' shapes, which ZeRO-3 and FSDP change."""
    from loramoe.fit import Linear
    from loramoe.layer import LoraMoeLayer

    return {
        _plain(name): Linear(module.in_features, module.out_features, module.r[adapter_name])
        for name, module in model.named_modules()
        if isinstance(module, LoraMoeLayer) and adapter_name in module.r
    }


def _saved(model: nn.Module, adapter_name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the copies that `modules_to_save` trains, by the names that they have in a file."""
    from peft.utils import ModulesToSaveWrapper

    return {
        _plain(f"{name}.{inner}"): tuple(parameter.shape) if parameter.numel() else ()
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
        for inner, parameter in module.modules_to_save[adapter_name].named_parameters()
    }
