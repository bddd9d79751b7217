"""Adapters of the original code, converted to files of ours and back; not one bit of a weight changes.

The original code (github.com/Ablustrund/LoRAMoE) saved a LORA-typed configuration with `lora_nums`, and a pickled
`adapter_model.bin` with a tensor for each expert (see `loramoe/tuner/state_dict.py`).

    python -m loramoe.export.original IN OUT                  # original → ours
    python -m loramoe.export.original IN OUT --to-original    # ours → original

`PeftModel.from_pretrained` reads an original adapter without conversion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loramoe.tuner.config import LoraMoeConfig
from loramoe.tuner.state_dict import EXPERTS, PARTS, CheckpointError, current_names

CONFIG, PICKLED, SAFE = "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"

# Fields of an original configuration: those that LoraMoeConfig has too, and those that it has no use for.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "inference_mode", "modules_to_save", "target_modules")
SHARED_FIELDS += ("blc_alpha", "blc_weight", "lora_alpha", "lora_dropout", "lora_nums", "r", "task_type")
ORIGINAL_FIELDS = {"bias": "none", "enable_lora": None, "fan_in_fan_out": False, "merge_weights": False}
# Fields of ours that must have these values to be written back, since the original code knows no others.
ORIGINAL_NATURE: dict[str, Any] = {
    "alpha_pattern": {},
    "blc_importance": "sum",
    "blc_target": "paper",
    "exclude_modules": None,
    "expert_types": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "use_rslora": False,
}


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and weights of an adapter's folder; CheckpointError if a file cannot be read."""
    file = folder / SAFE if (folder / SAFE).is_file() else folder / PICKLED
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(file) if file.name == SAFE else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{folder} holds no adapter that can be read: {reason} Check the path and both files."
        ) from error
    return config, weights


def split_experts(weights: Mapping[str, Tensor], lora_nums: int) -> dict[str, Tensor]:
    """Return an adapter's weights by the names of the original code: the inverse of `current_names`."""
    suffixes = tuple(f".{EXPERTS}.{part}" for part in PARTS)
    original = {name: tensor for name, tensor in weights.items() if not name.endswith(suffixes)}
    layers = {name.rpartition(f".{EXPERTS}.")[0] for name in weights if name.endswith(suffixes)}
    for layer in sorted(layers):
        router, A, B = (weights.get(f"{layer}.{EXPERTS}.{part}") for part in PARTS)
        if router is None or A is None or B is None or len(router) != lora_nums:
            raise CheckpointError(
                f"{layer} must have a router, A and B of lora_nums={lora_nums} experts: weights and {CONFIG} do not "
                "belong together. Take both from the same save."
            )
        original[f"{layer}.lora_route.weight"] = router
        for i, (A_i, B_i) in enumerate(zip(A.chunk(lora_nums, dim=0), B.chunk(lora_nums, dim=1), strict=True)):
            original[f"{layer}.lora_A{i}.weight"] = A_i.contiguous()
            original[f"{layer}.lora_B{i}.weight"] = B_i.contiguous()
    return original


def config_from_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an original adapter_config.json as one of ours; CheckpointError if it is none."""
    if config.get("peft_type") != "LORA" or not config.get("lora_nums"):
        raise CheckpointError(
            f"not an adapter of the original code: its {CONFIG} has peft_type={config.get('peft_type')!r} and "
            f"lora_nums={config.get('lora_nums')!r}, expected 'LORA' and a number. To write one back, add "
            "--to-original."
        )
    foreign = {k: config[k] for k, v in ORIGINAL_FIELDS.items() if config.get(k, v) != v}
    if foreign:
        raise CheckpointError(f"LoRAMoE has no {', '.join(f'{k}={v!r}' for k, v in foreign.items())}. Remove it first.")
    shared = {k: config[k] for k in SHARED_FIELDS if k in config}
    return {"peft_type": "LORAMOE", **shared, "blc_target": "paper", "blc_importance": "sum"}


def config_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter_config.json of ours as the original code wrote it; CheckpointError if it cannot express it."""
    if config.get("peft_type") != "LORAMOE":
        raise CheckpointError(f"not a LoRAMoE adapter: its {CONFIG} has peft_type={config.get('peft_type')!r}.")
    foreign = {k: config[k] for k, v in ORIGINAL_NATURE.items() if k in config and config[k] != v}
    if foreign:
        raise CheckpointError(
            f"the original code has no {', '.join(f'{k}={v!r}' for k, v in foreign.items())}, so the adapter would "
            "train differently there. If it is only to be used, set the field in adapter_config.json first."
        )
    shared = {k: config[k] for k in SHARED_FIELDS if k in config}
    return dict(sorted({"peft_type": "LORA", **ORIGINAL_FIELDS, **shared}.items()))


def convert(source: Path, target: Path, to_original: bool = False) -> None:
    """Convert an adapter folder; the target appears complete or not at all.

    Args:
        source: Folder of the adapter to read.
        target: Folder to write; must not exist yet, or be empty.
        to_original: False: from the original code's format to ours. True: back.

    Raises:
        CheckpointError: If the source is not what is expected, or the target is in use.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder. Choose another, or remove it first.")
    config, weights = read_adapter(source)
    weights = current_names(weights)
    new_config = config_to_original(config) if to_original else config_from_original(config)
    try:
        LoraMoeConfig(**{k: v for k, v in (config if to_original else new_config).items() if k in SHARED_FIELDS})
    except ValueError as error:
        raise CheckpointError(f"{source / CONFIG}: {error}") from error
    split = split_experts(weights, config["lora_nums"])  # in either direction, as it checks that both files agree
    with _atomic_dir(target) as unfinished:
        (unfinished / CONFIG).write_text(json.dumps(new_config, indent=2, sort_keys=True), encoding="utf-8")
        if to_original:
            torch.save(split, unfinished / PICKLED)
        else:
            # Tensors of a pickle may share memory, which safetensors refuses.
            save_file({k: v.clone() for k, v in weights.items()}, unfinished / SAFE, metadata={"format": "pt"})


@contextmanager
def _atomic_dir(target: Path) -> Iterator[Path]:
    """A hidden folder that takes the target's place at the end, or is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        yield unfinished
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says; the exit code is 1 if the target was not written."""
    summary = (__doc__ or "").split("\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="loramoe convert", description=summary)
    parser.add_argument("source", type=Path, metavar="IN", help="folder of the adapter to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to write; must not exist yet, or be empty")
    parser.add_argument("--to-original", action="store_true", help="write the original code's format instead")
    args = parser.parse_args(argv)
    try:
        convert(args.source, args.target, args.to_original)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
