"""Adapters of the original code, converted to ours and back; no bit of a weight changes.

The original code (github.com/Ablustrund/LoRAMoE) saved a configuration of type LORA with `lora_nums`, and a pickled
`adapter_model.bin` with a tensor for each expert (see `loramoe/tuner/state_dict.py`). `PeftModel.from_pretrained` reads
such an adapter without conversion.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramoe.data.templates import PROMPT_FILE
from loramoe.export.run import REPORT, finish_folder
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.state_dict import EXPERTS, CheckpointError, current_names
from loramoe.utils import check_output_dir, public_name, replace_dir

CONFIG, PICKLED, SAFE = "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"
TOKENIZER_FILES = ("*token*", "vocab.*", "merges.txt", "*.model", "chat_template*", PROMPT_FILE)
# The fields of an original configuration: those of one supported value, and those that LoraMoeConfig has too.
FIXED: dict[str, Any] = {"bias": "none", "enable_lora": None, "fan_in_fan_out": False, "merge_weights": False}
SHARED: tuple[str, ...] = ("base_model_name_or_path", "inference_mode", "modules_to_save", "target_modules")
SHARED += ("task_type", "blc_alpha", "blc_weight", "lora_alpha", "lora_dropout", "lora_nums", "r")


def convert(source: Path, target: Path, to_original: bool = False, overwrite: bool = False) -> None:
    """Converts an adapter folder with its tokenizer and prompt format; an existing result is replaced if `overwrite`.

    Raises:
        CheckpointError: If the source is damaged, or the other format cannot express it.
        UsageError: If the target is in use.
    """
    check_output_dir(target, overwrite, REPORT)
    config, saved = read_adapter(source)
    weights = current_names(saved)
    if (saved.keys() == weights.keys()) != to_original:
        raise CheckpointError(f"{source} has that format already. Is --to-original right?")
    split = _split_experts(weights, config.lora_nums)  # for our format too: it checks that weights and config agree
    original_config = _original_config(config) if to_original else {}
    with replace_dir(target) as draft:
        if to_original:
            text = json.dumps(original_config, indent=2, sort_keys=True, default=sorted)  # of sets
            (draft / CONFIG).write_text(text, encoding="utf-8")
            torch.save(split, draft / PICKLED)
        else:  # cloned, because tensors of a pickle may share memory, which safetensors refuses
            config.save_pretrained(draft)
            save_file({k: v.clone() for k, v in weights.items()}, draft / SAFE, metadata={"format": "pt"})
        for file in {file for pattern in TOKENIZER_FILES for file in source.glob(pattern)}:
            shutil.copy(file, draft)
        finish_folder(draft, {"format": "original" if to_original else "peft", "source": public_name(str(source))})


def read_adapter(folder: Path) -> tuple[LoraMoeConfig, dict[str, Tensor]]:
    """Returns configuration and weights of an adapter folder; CheckpointError if a file cannot be read."""
    file = folder / SAFE if (folder / SAFE).is_file() else folder / PICKLED
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(file) if file.name == SAFE else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} holds no readable adapter: {reason} Check the path.") from error
    if not isinstance(config, LoraMoeConfig):
        raise CheckpointError(f"{folder} holds a {config.peft_type.value} without lora_nums. Give a LoRAMoE adapter.")
    return config, weights


def _original_config(config: LoraMoeConfig) -> dict[str, Any]:
    values = {**FIXED, "peft_type": "LORA", **{name: getattr(config, name) for name in SHARED}}
    # The same configuration, read back from that format. How weights were initialised matters no more.
    back = LoraConfig(**values, init_lora_weights=config.init_lora_weights)
    own = {name: getattr(config, name) for name in LoraMoeConfig.__annotations__}
    lost = [f"{name}={value!r}" for name, value in own.items() if value != getattr(back, name)]
    if lost:
        raise CheckpointError(f"the original format has no {', '.join(lost)}. For inference alone, edit {CONFIG}.")
    return values


def _split_experts(weights: Mapping[str, Tensor], lora_nums: int) -> dict[str, Tensor]:
    """The inverse of `current_names`."""
    original = {}
    for name, tensor in weights.items():
        layer, _, part = name.rpartition(f".{EXPERTS}.")
        if part == "router" and len(tensor) != lora_nums:
            raise CheckpointError(f"{name} is for {len(tensor)} experts, and {CONFIG} has {lora_nums=}. Correct it.")
        if part == "router":
            original[f"{layer}.lora_route.weight"] = tensor
        elif part in ("A", "B"):
            for i, expert in enumerate(tensor.chunk(lora_nums, dim="AB".index(part))):
                original[f"{layer}.lora_{part}{i}.weight"] = expert.contiguous()
        else:
            original[name] = tensor
    return original


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `loramoe convert`; the exit code is 1 if nothing was written."""
    parser = argparse.ArgumentParser(prog="loramoe convert", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, metavar="IN", help="folder of the adapter to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--to-original", action="store_true", help="write the original code's format, not ours")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in OUT")
    flags = parser.parse_args(argv)
    try:
        convert(**vars(flags))
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"wrote {flags.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
