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
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramoe.data.templates import PROMPT_FILE
from loramoe.export.run import REPORT, write_report
from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.state_dict import EXPERTS, PARTS, CheckpointError, current_names
from loramoe.utils import check_output_dir, public_name, replace_dir

CONFIG, PICKLED, SAFE = "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"
TOKENIZER_FILES = ("*token*", "vocab.*", "merges.txt", "*.model", "chat_template*", PROMPT_FILE)
# Fields of an original configuration: those that LoraMoeConfig has too, and those with one supported value.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "inference_mode", "modules_to_save", "target_modules")
SHARED_FIELDS += ("task_type", "blc_alpha", "blc_weight", "lora_alpha", "lora_dropout", "lora_nums", "r")
ORIGINAL_FIELDS = {"bias": "none", "enable_lora": None, "fan_in_fan_out": False, "merge_weights": False}
# Fields of ours with the one value that the original code can express.
OWN_FIELDS: dict[str, Any] = {"alpha_pattern": {}, "rank_pattern": {}, "use_rslora": False, "expert_types": None}
OWN_FIELDS |= {"blc_importance": "sum", "blc_target": "paper", "exclude_modules": None, "layers_to_transform": None}


def convert(source: Path, target: Path, to_original: bool = False, overwrite: bool = False) -> None:
    """Converts an adapter folder, with its tokenizer and prompt format; the target appears whole or not at all.

    Args:
        source: Folder of the adapter.
        target: Folder to write.
        to_original: Write the original code's format, not ours.
        overwrite: Replace an earlier result in that folder.

    Raises:
        CheckpointError: If the source is damaged, or the other format cannot express it.
        UsageError: If the target is in use.
    """
    check_output_dir(target, overwrite, REPORT)
    config, saved = read_adapter(source)
    new_config = _convert_config(config, to_original)
    try:
        LoraMoeConfig(**{k: v for k, v in config.items() if k in SHARED_FIELDS})
    except ValueError as error:
        raise CheckpointError(f"{source / CONFIG}: {error}") from error
    weights = current_names(saved)
    split = _split_experts(weights, config["lora_nums"])  # for our format too: it checks that weights and config agree
    with replace_dir(target) as draft:
        (draft / CONFIG).write_text(json.dumps(new_config, indent=2, sort_keys=True), encoding="utf-8")
        if to_original:
            torch.save(split, draft / PICKLED)
        else:  # cloned, because tensors of a pickle may share memory, which safetensors refuses
            save_file({k: v.clone() for k, v in weights.items()}, draft / SAFE, metadata={"format": "pt"})
        for file in {file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()}:
            shutil.copy(file, draft)
        write_report(draft, {"format": "original" if to_original else "peft", "source": public_name(str(source))})


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns configuration and weights of an adapter folder; CheckpointError if a file cannot be read."""
    file = folder / SAFE if (folder / SAFE).is_file() else folder / PICKLED
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(file) if file.name == SAFE else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} holds no readable adapter: {reason} Check the path.") from error
    return config, weights


def _convert_config(config: Mapping[str, Any], to_original: bool) -> dict[str, Any]:
    kind, fixed = ("LORAMOE", OWN_FIELDS) if to_original else ("LORA", ORIGINAL_FIELDS)
    if config.get("peft_type") != kind or not config.get("lora_nums"):
        found = f"peft_type={config.get('peft_type')!r} and lora_nums={config.get('lora_nums')!r}"
        raise CheckpointError(f"{CONFIG} has {found}, expected {kind!r} and a number. Is --to-original right?")
    if foreign := {k: config[k] for k, v in fixed.items() if config.get(k, v) != v}:
        values = ", ".join(f"{k}={v!r}" for k, v in foreign.items())
        raise CheckpointError(f"the other format cannot express {values}. For inference alone, edit {CONFIG}.")
    shared = {k: config[k] for k in SHARED_FIELDS if k in config}
    if to_original:
        return {"peft_type": "LORA", **ORIGINAL_FIELDS, **shared}
    return {"peft_type": "LORAMOE", **shared, "blc_target": "paper", "blc_importance": "sum"}


def _split_experts(weights: Mapping[str, Tensor], lora_nums: int) -> dict[str, Tensor]:
    """The inverse of `current_names`."""
    suffixes = tuple(f".{EXPERTS}.{part}" for part in PARTS)
    original = {name: tensor for name, tensor in weights.items() if not name.endswith(suffixes)}
    for layer in sorted({name.rpartition(f".{EXPERTS}.")[0] for name in weights if name.endswith(suffixes)}):
        router, A, B = (weights.get(f"{layer}.{EXPERTS}.{part}") for part in PARTS)
        if router is None or A is None or B is None or len(router) != lora_nums:
            raise CheckpointError(
                f"{layer} must have a router, A and B of lora_nums={lora_nums} experts. Take {CONFIG} and weights from "
                "the same save."
            )
        original[f"{layer}.lora_route.weight"] = router
        for i, (A_i, B_i) in enumerate(zip(A.chunk(lora_nums, dim=0), B.chunk(lora_nums, dim=1), strict=True)):
            original[f"{layer}.lora_A{i}.weight"] = A_i.contiguous()
            original[f"{layer}.lora_B{i}.weight"] = B_i.contiguous()
    return original


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `loramoe convert`; the exit code is 1 if nothing was written."""
    parser = argparse.ArgumentParser(prog="loramoe convert", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path, metavar="IN", help="folder of the adapter to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--to-original", action="store_true", help="write the original code's format, not ours")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in OUT")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.source, arguments.target, arguments.to_original, arguments.overwrite)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
