"""The stand-alone model of an adapter as a folder: what `AutoModelForCausalLM.from_pretrained` and vLLM take.

loramoe export --format hf --adapter A --output_dir D [--link_base]
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import loramoe
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data.templates import PROMPT_FILE
from loramoe.export.adapted import Adapted, ExportError, adapted
from loramoe.export.report import REPORT
from loramoe.export.run import refuse_used, whole_or_not_at_all
from loramoe.loading import BaseArguments, Dtype, base_name, load_base, load_config, load_tokenizer
from loramoe.serving import CLASS_PREFIX, FAMILIES, model
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.state_dict import PARTS
from loramoe.utils import ADAPTER_ERRORS, as_usage_error, public_name, write_json

EXPERTS_FILE: Final = "loramoe.safetensors"
BASE_FILE: Final = "base-{}"  # not model.safetensors, which transformers would take for the whole model


def export_model(
    adapter: str,
    output_dir: str | os.PathLike[str],
    *,
    base_model: str | None = None,
    dtype: Dtype = "auto",
    link_base: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes base model and adapter as one ordinary Hugging Face folder, which computes what the adapter does.

    Args:
        adapter: Folder of a LoRAMoE adapter.
        output_dir: Folder to write; appears whole or not at all.
        base_model: Base model. Default: the one that the adapter was trained on.
        dtype: Dtype of the base model; router and experts are float32.
        link_base: Link the safetensors files of the base model instead of writing its weights again.
        overwrite: Replace an earlier export in that folder.

    Raises:
        ExportError: If the folder is in use, or the adapter or its base model cannot be exported.
        UsageError: If one of them cannot be loaded.
    """
    out = Path(output_dir)
    refuse_used(out, overwrite)
    name = base_name(base_model, [adapter])
    _check(adapter, name)
    linked = _base_files(name) if link_base else []
    tokenizer = load_tokenizer(name, [adapter])
    base = load_base(BaseArguments(name, dtype=dtype), "cpu")
    with as_usage_error(*ADAPTER_ERRORS, about=f"the adapter {adapter} cannot be loaded on {name}:"):
        found = adapted(PeftModel.from_pretrained(base, adapter).eval())
    settings = _model_config(found)
    with whole_or_not_at_all(out.resolve(), overwrite) as folder:
        if link_base:
            _link(folder, linked, found)
        else:
            _stand_alone(found, settings).save_pretrained(folder)
        settings.architectures = [type(base).__name__]  # a class of transformers': vLLM asks it if it can be run
        settings.save_pretrained(folder)
        base.generation_config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        if (Path(adapter) / PROMPT_FILE).is_file():
            shutil.copy(Path(adapter) / PROMPT_FILE, folder)
        files = [REPORT, *(entry.name for entry in folder.iterdir())]  # a later export may replace these
        names = {"source": public_name(adapter), "base_model": public_name(name)}
        write_json(folder / REPORT, {"format": "hf", "loramoe": loramoe.__version__, **names, "files": sorted(files)})


def _model_config(found: Adapted) -> Any:
    base = found.model.get_base_model()
    layers = {}
    for name, layer in found.layers.items():
        if type(layer.base_layer) is not nn.Linear or not name.startswith(f"{base.base_model_prefix}."):
            kind = type(layer.base_layer).__name__
            raise ExportError(f"{name} ({kind}) is no nn.Linear of the decoder. Use the adapter through PEFT.")
        options = {"r": layer.r[found.name], "scaling": layer.scaling[found.name]}
        layers[name.removeprefix(f"{base.base_model_prefix}.")] = options
    values = base.config.to_dict()
    own_class = getattr(model, CLASS_PREFIX + FAMILIES[values.pop("model_type")][0])
    return own_class.from_dict({**values, "loramoe": {"lora_nums": found.config.lora_nums, "layers": layers}})


def _check(adapter: str, base: str) -> None:
    """Refuses, by the configurations alone, what cannot be exported."""
    own, of_base = PeftConfig.from_pretrained(adapter), load_config(BaseArguments(base))
    if not isinstance(own, LoraMoeConfig):
        raise ExportError(f"adapter {adapter} is of type {own.peft_type.value}; only LoRAMoE needs this export.")
    if own.modules_to_save:
        raise ExportError(
            f"adapter {adapter} has modules_to_save={sorted(own.modules_to_save)}, trained copies of base weights, "
            "which no stand-alone model holds. Use it through PEFT."
        )
    if of_base.model_type not in FAMILIES:
        raise ExportError(
            f"base model {base} is of type {of_base.model_type!r}; stand-alone models exist for {sorted(FAMILIES)}. "
            "Use the adapter through PEFT."
        )
    if getattr(of_base, "quantization_config", None):
        raise ExportError(f"base model {base} is quantised. Set --base_model to the one it was quantised from.")


def _expert_weights(found: Adapted) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": weight.detach().contiguous()
        for name, layer in found.layers.items()
        for part, weight in zip(PARTS, layer.weights(found.name), strict=True)
    }


def _stand_alone(found: Adapted, settings: Any) -> Any:
    base = found.model.get_base_model()
    weights = {name: weight for name, weight in base.state_dict().items() if ".loramoe_experts." not in name}
    with torch.device("meta"):
        whole = getattr(model, CLASS_PREFIX + FAMILIES[base.config.model_type][2])(settings)
    whole.load_state_dict({**weights, **_expert_weights(found)}, assign=True)
    return whole


def _base_files(name: str) -> list[Path]:
    patterns = [SAFE_WEIGHTS_NAME, "model-*-of-*.safetensors"]
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=patterns))
    files = next(filter(None, (sorted(folder.glob(pattern)) for pattern in patterns)), [])
    if not files:
        raise ExportError(f"base model {name} has no {SAFE_WEIGHTS_NAME} that could be linked. Leave --link_base out.")
    return files


def _link(folder: Path, files: list[Path], found: Adapted) -> None:
    """Links the base model's files, writes router and experts beside them, and an index over both."""
    home = {}
    for file in files:
        linked = folder / BASE_FILE.format(file.name)
        try:
            os.link(file.resolve(), linked)
        except OSError:  # on another disk
            linked.symlink_to(file.resolve())
        with safe_open(linked, "pt") as opened:
            home.update(dict.fromkeys(opened.keys(), linked.name))
    experts = _expert_weights(found)
    save_file(experts, folder / EXPERTS_FILE, metadata={"format": "pt"})
    home.update(dict.fromkeys(experts, EXPERTS_FILE))
    write_json(folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {}, "weight_map": home})
