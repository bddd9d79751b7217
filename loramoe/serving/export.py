"""The stand-alone model of an adapter as a folder, which `AutoModelForCausalLM.from_pretrained` and vLLM load.

loramoe export --format hf --adapter A --output_dir D [--link_base]
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict, snapshot_download
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from loramoe.export.run import REPORT, finish_folder
from loramoe.loading import BaseArguments, Dtype, adapter_folder, base_name, load_config, load_model, load_tokenizer
from loramoe.serving import CLASS_PREFIX, FAMILIES, model
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.layer import LoraMoeLayer
from loramoe.tuner.state_dict import EXPERTS, PARTS
from loramoe.utils import UsageError, check_output_dir, public_name, replace_dir, write_json

EXPERTS_FILE = "loramoe.safetensors"
BASE_FILE = "base-{}"  # not model.safetensors, which transformers would take for the whole model
ADAPTER = "default"  # PEFT's name of an adapter that is loaded alone


def export_model(
    adapter: str,
    output_dir: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    link_base: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes base model and adapter as one ordinary Hugging Face folder, whose model computes what the adapter does.

    Args:
        adapter: Folder of a LoRAMoE adapter, or its name on the hub.
        output_dir: Folder to write; it appears whole or not at all.
        base_model: Base model. Default: the one that the adapter was trained on.
        dtype: Dtype of the base model; router and experts are float32.
        link_base: Link the safetensors files of the base model instead of writing its weights again.
        overwrite: Replace an earlier export in that folder.

    Raises:
        ValueError: If the folder is in use, or the adapter or its base model cannot be loaded or exported.
    """
    check_output_dir(Path(output_dir), overwrite, REPORT)
    folder = adapter_folder(adapter)
    name = base_name(base_model, [folder])
    _check(folder, name)
    linked = _base_files(name) if link_base else []
    tokenizer = load_tokenizer(name, [folder])
    base = load_model(BaseArguments(name, dtype=dtype), folder, "cpu").get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraMoeLayer)}
    config = _model_config(base, layers)
    experts = {
        f"{name}.{part}": weight.detach().contiguous()
        for name, layer in layers.items()
        for part, weight in zip(PARTS, layer.weights(ADAPTER), strict=True)
    }
    with replace_dir(Path(output_dir)) as draft:
        if link_base:
            _link(draft, linked, experts)
        else:
            weights = {name: weight for name, weight in base.state_dict().items() if f".{EXPERTS}." not in name}
            if base.config.tie_word_embeddings:
                del weights["lm_head.weight"]
            save_torch_state_dict({**weights, **experts}, draft)
        config.save_pretrained(draft)
        base.generation_config.save_pretrained(draft)
        report = {"format": "hf", "source": public_name(adapter), "base_model": public_name(name)}
        finish_folder(draft, report, tokenizer, folder)


def _check(adapter: str, base: str) -> None:
    """Refuses what cannot be exported; only the configurations are read."""
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
    prefix, options = f"{base.base_model_prefix}.", {}
    for name, layer in layers.items():
        if type(layer.base_layer) is not nn.Linear or not name.startswith(prefix):
            kind = type(layer.base_layer).__name__
            raise UsageError(f"{name} ({kind}) is not an nn.Linear of the decoder. Use the adapter through PEFT.")
        options[name.removeprefix(prefix)] = {"r": layer.r[ADAPTER], "scaling": layer.scaling[ADAPTER]}
    values = base.config.to_dict()
    # A class of vLLM and SGLang. One of transformers would be loaded without the experts by tools that look it up.
    values["architectures"] = ["TransformersForCausalLM"]
    values["loramoe"] = {"lora_nums": base.peft_config[ADAPTER].lora_nums, "layers": options}
    return getattr(model, CLASS_PREFIX + FAMILIES[values.pop("model_type")][0]).from_dict(values)


def _base_files(name: str) -> list[Path]:
    patterns = [SAFE_WEIGHTS_NAME, "model-*-of-*.safetensors"]
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=patterns))
    files = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
    if not files:
        raise UsageError(f"base model {name} has no {SAFE_WEIGHTS_NAME} to link. Leave --link_base out.")
    return files


def _link(folder: Path, files: list[Path], experts: Mapping[str, Tensor]) -> None:
    """Links the base model's files, and writes router and experts, and an index over both."""
    file_of = dict.fromkeys(experts, EXPERTS_FILE)
    for file in files:
        linked = folder / BASE_FILE.format(file.name)
        try:
            os.link(file.resolve(), linked)
        except OSError:  # another disk
            linked.symlink_to(file.resolve())
        with safe_open(linked, "pt") as opened:
            file_of |= dict.fromkeys(opened.keys(), linked.name)
    save_file(dict(experts), folder / EXPERTS_FILE, metadata={"format": "pt"})
    write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {}, "weight_map": file_of})
