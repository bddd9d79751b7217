"""Adapters of the original release: reading them, converting them, writing them back.

The release (github.com/Ablustrund/LoRAMoE) saved a LORA-typed configuration with `lora_nums` and, for each linear,
`lora_route.weight` [E, D] and for each expert `lora_A{i}.weight` [R, D] and `lora_B{i}.weight` [F, R], in a pickled
`adapter_model.bin`. Ours stacks the experts; not one bit of a weight changes in either direction.

    python -m loramoe.checkpoint IN OUT                  # original → ours
    python -m loramoe.checkpoint IN OUT --to-original    # ours → original

`PeftModel.from_pretrained` reads an original adapter as it is: converting is for those who want the new file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loramoe.adapter_files import CONFIG, PICKLED, SAFE, CheckpointError, read_adapter

EXPERT = re.compile(r"^(?P<linear>.*)\.lora_(?P<which>A|B)(?P<index>0|[1-9][0-9]{0,5})\.weight$")
STACKED = re.compile(r"^(?P<linear>.*)\.loramoe_(?P<which>A|B|router)\.weight$")

ROUTER = ".lora_route.weight"
DECLARED = ("gate_proj", "down_proj", "up_proj")

# Fields of an original configuration: those that LoraMoeConfig has too, and those that it has no use for.
SHARED_FIELDS: tuple[str, ...] = ("base_model_name_or_path", "inference_mode", "modules_to_save", "target_modules")
SHARED_FIELDS += ("blc_alpha", "blc_weight", "lora_alpha", "lora_dropout", "lora_nums", "r", "task_type")
ORIGINAL_FIELDS = {"bias": "none", "enable_lora": None, "fan_in_fan_out": False, "merge_weights": False}
# What an original adapter is by nature: fields of ours that must have these values to be written back.
ORIGINAL_NATURE: dict[str, Any] = {
    "alpha_pattern": {},
    "blc_target": "paper",
    "exclude_modules": None,
    "expert_types": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "use_rslora": False,
}


def is_original(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of an adapter of the original release.

    Args:
        weights: Tensors by name, as read from an adapter file.

    Returns:
        True if there is a router by the original's name.
    """
    return any(name.endswith(ROUTER) for name in weights)


def stack_experts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names and shapes to ours: the experts of each linear are stacked.

    Args:
        weights: Tensors of an original adapter, by name.

    Returns:
        For each linear `loramoe_router` [E, D], `loramoe_A` [E·R, D] and `loramoe_B` [F, E·R]; other tensors as they
        are.

    Raises:
        CheckpointError: If a linear lacks an expert, or its router, or the experts differ in shape or dtype.
    """
    stacked: dict[str, Tensor] = {}
    experts: dict[tuple[str, str], dict[int, Tensor]] = {}
    routers = {name[: -len(ROUTER)]: t for name, t in weights.items() if name.endswith(ROUTER) and t.dim() == 2}
    for name, tensor in weights.items():
        if match := EXPERT.match(name):
            experts.setdefault((match["linear"], match["which"]), {})[int(match["index"])] = tensor
        else:
            stacked[name.replace(".lora_route.", ".loramoe_router.")] = tensor
    for linear in dict.fromkeys([*routers, *(linear for linear, _ in experts)]):
        wanted = range(len(routers.get(linear, ())))
        for which, dim in (("A", 0), ("B", 1)):
            by_index = experts.get((linear, which), {})
            if sorted(by_index) != list(wanted):
                raise CheckpointError(
                    f"{linear} has lora_{which} of experts {sorted(by_index)}, but a router for {len(wanted)} experts: "
                    "the file is not whole. Copy or download it again."
                )
            stacked[f"{linear}.loramoe_{which}.weight"] = _cat(f"{linear}.lora_{which}", by_index, dim)
    return stacked


def _cat(name: str, by_index: Mapping[int, Tensor], dim: int) -> Tensor:
    tensors = [by_index[i] for i in sorted(by_index)]
    kinds = {(str(tensor.dtype), tuple(tensor.shape)) for tensor in tensors}
    if len(kinds) != 1 or tensors[0].dim() != 2:
        raise CheckpointError(
            f"the experts of {name} should be matrices of one shape and dtype, but are {sorted(kinds)}: the file is "
            "damaged. Copy or download it again."
        )
    return torch.cat(tensors, dim=dim)


def unstack_experts(weights: Mapping[str, Tensor], lora_nums: int) -> dict[str, Tensor]:
    """Our names and shapes to the original's: the inverse of `stack_experts`.

    Args:
        weights: Tensors of an adapter of ours, by name.
        lora_nums: Number of experts E.

    Returns:
        Tensors of an original adapter, in its order: for each linear the router, then A and B of each expert.

    Raises:
        CheckpointError: If a linear lacks a part, or has another number of experts.
    """
    original = {name: tensor for name, tensor in weights.items() if not STACKED.match(name)}
    linears = {match["linear"] for match in map(STACKED.match, weights) if match}
    for linear in sorted(linears, key=_place):
        parts = [weights.get(f"{linear}.loramoe_{which}.weight") for which in ("router", "A", "B")]
        router, A, B = parts
        if router is None or A is None or B is None or len(router) != lora_nums:
            raise CheckpointError(
                f"{linear} should have a router, A and B of lora_nums={lora_nums} experts, but has "
                f"{[None if part is None else list(part.shape) for part in parts]}: weights and {CONFIG} do not belong "
                "together."
            )
        original[f"{linear}.lora_route.weight"] = router
        for i, (A_i, B_i) in enumerate(zip(A.chunk(lora_nums, dim=0), B.chunk(lora_nums, dim=1), strict=True)):
            original[f"{linear}.lora_A{i}.weight"] = A_i.contiguous()
            original[f"{linear}.lora_B{i}.weight"] = B_i.contiguous()
    return original


def _place(linear: str) -> tuple[list[tuple[int, str]], int, str]:
    """Where a linear stands in an original file: layer by layer, and in one as the release's model declares them."""
    *path, name = linear.split(".")
    numbered = [(int(part), "") if re.fullmatch("[0-9]{1,9}", part) else (-1, part) for part in path]
    return numbered, DECLARED.index(name) if name in DECLARED else len(DECLARED), name


def config_from_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """An original configuration as one of ours.

    Args:
        config: The content of an original adapter_config.json.

    Returns:
        The fields of the LoraMoeConfig that stands for it.

    Raises:
        CheckpointError: If it is not an original LoRAMoE configuration.
    """
    if config.get("peft_type") != "LORA" or not config.get("lora_nums"):
        raise CheckpointError(
            f"not an adapter of the original release: its {CONFIG} has peft_type={config.get('peft_type')!r} and "
            f"lora_nums={config.get('lora_nums')!r}, expected 'LORA' and a number. To write one back, add "
            "--to-original."
        )
    foreign = {k: config[k] for k, v in ORIGINAL_FIELDS.items() if config.get(k, v) != v}
    if foreign:
        raise CheckpointError(
            f"LoRAMoE has no {', '.join(f'{k}={v!r}' for k, v in foreign.items())}: the adapter would not be the same."
        )
    return {"peft_type": "LORAMOE", **{k: config[k] for k in SHARED_FIELDS if k in config}}


def config_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of ours as the original release wrote its own.

    Args:
        config: The content of an adapter_config.json of ours.

    Returns:
        The content of the original adapter_config.json.

    Raises:
        CheckpointError: If it is no LoRAMoE configuration, or holds something the original cannot express.
    """
    if config.get("peft_type") != "LORAMOE":
        raise CheckpointError(f"not a LoRAMoE adapter: its {CONFIG} has peft_type={config.get('peft_type')!r}.")
    foreign = {k: config[k] for k, v in ORIGINAL_NATURE.items() if k in config and config[k] != v}
    if foreign:
        raise CheckpointError(f"the original release has no {', '.join(f'{k}={v!r}' for k, v in foreign.items())}.")
    shared = {k: config[k] for k in SHARED_FIELDS if k in config}
    return dict(sorted({"peft_type": "LORA", **ORIGINAL_FIELDS, **shared}.items()))


def convert(source: Path, target: Path, to_original: bool = False) -> None:
    """Convert an adapter folder; the target appears whole or not at all.

    Args:
        source: Folder of the adapter to read.
        target: Folder to write; must not exist yet, or be empty.
        to_original: False: from the original release to ours. True: back.

    Raises:
        CheckpointError: If the source is not what is expected, or the target is in use.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder. Choose another, or remove it first.")
    config, weights = read_adapter(source)
    if to_original:
        new_config = config_to_original(config)
        _check(config, weights)
        new_weights = unstack_experts(weights, config["lora_nums"])
    else:
        new_config, new_weights = config_from_original(config), stack_experts(weights)
        _check(new_config, new_weights)
    with _whole_or_not_at_all(target) as unfinished:
        (unfinished / CONFIG).write_text(json.dumps(new_config, indent=2, sort_keys=True), encoding="utf-8")
        if to_original:
            torch.save(new_weights, unfinished / PICKLED)
        else:
            # Tensors of a pickle may share memory, which safetensors refuses.
            save_file({k: v.clone() for k, v in new_weights.items()}, unfinished / SAFE, metadata={"format": "pt"})


def _check(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Checks values of a configuration of ours, and that the weights are of it."""
    from loramoe.config import LoraMoeConfig
    from loramoe.fit import check_weights

    known = {field.name for field in dataclasses.fields(LoraMoeConfig)}
    try:
        checked = LoraMoeConfig(**{k: v for k, v in config.items() if k in known - {"peft_type"}})
    except ValueError as error:
        raise CheckpointError(f"{CONFIG}: {error}") from error
    check_weights(checked, weights)


@contextmanager
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, which takes its place at the end, or is removed."""
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
    """Command line of the converter.

    Args:
        argv: Arguments; by default the process's own.

    Returns:
        Exit code: 0 if the target was written, 1 if not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m loramoe.checkpoint", description=__doc__.split("\n", maxsplit=1)[0]
    )
    parser.add_argument("source", type=Path, metavar="IN", help="folder of the adapter to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to write; must not exist yet, or be empty")
    parser.add_argument("--to-original", action="store_true", help="write the original release's format instead")
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
