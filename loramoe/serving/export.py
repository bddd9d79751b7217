"""The stand-alone model of an adapter as a folder, which `AutoModelForCausalLM.from_pretrained` and vLLM load.

loramoe export --format hf --adapter A --output_dir D [--link_base]
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from huggingface_hub import save_torch_state_dict, snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data.templates import PROMPT_FILE
from loramoe.export.run import REPORT, write_report
from loramoe.loading import BaseArguments, Dtype, base_name, load_base, load_config, load_tokenizer
from loramoe.serving import CLASS_PREFIX, FAMILIES, model
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.layer import LoraMoeLayer
from loramoe.utils import (
    ADAPTER_ERRORS,
    UsageError,
    as_usage_error,
    check_output_dir,
    public_name,
    replace_dir,
    write_json,
)

EXPERTS_FILE: Final = "loramoe.safetensors"
BASE_FILE: Final = "base-{}"  # not model.safetensors, which transformers would take for the whole model
ADAPTER: Final = "default"  # PEFT's name of an adapter that is loaded alone


def export_model(
    adapter: str,
    output_dir: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    link_base: bool = False,
    overwrite: bool = False,
) -> None:
    """Write base model and adapter as one ordinary Hugging Face folder, whose model computes what the adapter does.

    Args:
        adapter: Folder of a LoRAMoE adapter.
        output_dir: Folder to write; it appears whole or not at all.
        base_model: Base model. Default: the one that the adapter was trained on.
        dtype: Dtype of the base model; router and experts are float32.
        link_base: Link the safetensors files of the base model instead of writing its weights again.
        overwrite: Replace an earlier export in that folder.

    Raises:
        ValueError: If the folder is in use, or the adapter or its base model cannot be loaded or exported.
    """
    out = Path(output_dir)
    check_output_dir(out, overwrite, REPORT)
    name = base_name(base_model, [adapter])
    _check(adapter, name)
    linked = _base_files(name) if link_base else []
    tokenizer = load_tokenizer(name, [adapter])
    base = load_base(BaseArguments(name, dtype=dtype), "cpu")
    with as_usage_error(*ADAPTER_ERRORS, about=f"the adapter {adapter} cannot be loaded on {name}:"):
        PeftModel.from_pretrained(base, adapter)  # replaces layers of base
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraMoeLayer)}
    config = _model_config(base, layers)
    with replace_dir(out) as folder:
        if link_base:
            _link(folder, linked, _expert_weights(layers))
        else:
            weights = {name: weight for name, weight in base.state_dict().items() if ".loramoe_experts." not in name}
            if base.config.tie_word_embeddings:
                del weights["lm_head.weight"]
            save_torch_state_dict({**weights, **_expert_weights(layers)}, folder)
        config.architectures = ["TransformersForCausalLM"]  # a class of vLLM and SGLang, so none that lacks experts
        config.save_pretrained(folder)
        base.generation_config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        if (Path(adapter) / PROMPT_FILE).is_file():
            shutil.copy(Path(adapter) / PROMPT_FILE, folder)
        write_report(folder, {"format": "hf", "source": public_name(adapter), "base_model": public_name(name)})


def _check(adapter: str, base: str) -> None:
    """Refuse what cannot be exported; only the configurations are read."""
    own, of_base = PeftConfig.from_pretrained(adapter), load_config(BaseArguments(base))
    if not isinstance(own, LoraMoeConfig):
        raise UsageError(f"adapter {adapter} is of type {own.peft_type.value}; only a LoRAMoE adapter is exported.")
    if own.modules_to_save:
        raise UsageError(
            f"adapter {adapter} has modules_to_save={sorted(own.modules_to_save)}, trained copies of base weights, "
            "which no stand-alone model holds. Use it through PEFT."
        )
    if of_base.model_type not in FAMILIES:
        raise UsageError(
            f"base model {base} is of type {of_base.model_type!r}; stand-alone models exist for {sorted(FAMILIES)}. "
            "Use the adapter through PEFT."
        )
    if getattr(of_base, "quantization_config", None):
        raise UsageError(f"base model {base} is quantised. Set --base_model to the one it was quantised from.")


def _model_config(base: Any, layers: Mapping[str, LoraMoeLayer]) -> Any:
    prefix = f"{base.base_model_prefix}."
    options = {}
    for name, layer in layers.items():
        if type(layer.base_layer) is not nn.Linear or not name.startswith(prefix):
            kind = type(layer.base_layer).__name__
            raise UsageError(f"{name} ({kind}) is not an nn.Linear of the decoder. Use the adapter through PEFT.")
        options[name.removeprefix(prefix)] = {"r": layer.r[ADAPTER], "scaling": layer.scaling[ADAPTER]}
    lora_nums = next(iter(layers.values())).lora_nums[ADAPTER]
    values = base.config.to_dict()
    config_class = getattr(model, CLASS_PREFIX + FAMILIES[values.pop("model_type")][0])
    return config_class.from_dict({**values, "loramoe": {"lora_nums": lora_nums, "layers": options}})


def _expert_weights(layers: Mapping[str, LoraMoeLayer]) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": weight.detach().contiguous()
        for name, layer in layers.items()
        for part, weight in zip(model.WEIGHTS, layer.weights(ADAPTER), strict=True)
    }


def _base_files(name: str) -> list[Path]:
    patterns = [SAFE_WEIGHTS_NAME, "model-*-of-*.safetensors"]
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=patterns))
    files = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
    if not files:
        raise UsageError(f"base model {name} has no {SAFE_WEIGHTS_NAME} to link. Leave --link_base out.")
    return files


def _link(folder: Path, files: list[Path], experts: Mapping[str, Tensor]) -> None:
    """Link the base model's files, write router and experts beside them, and an index over both."""
    file_of = {}
    for file in files:
        linked = folder / BASE_FILE.format(file.name)
        try:
            os.link(file.resolve(), linked)
        except OSError:  # another disk
            linked.symlink_to(file.resolve())
        with safe_open(linked, "pt") as opened:
            file_of.update(dict.fromkeys(opened.keys(), linked.name))
    save_file(dict(experts), folder / EXPERTS_FILE, metadata={"format": "pt"})
    file_of.update(dict.fromkeys(experts, EXPERTS_FILE))
    write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {}, "weight_map": file_of})
