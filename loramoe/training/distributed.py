"""Several processes: what DeepSpeed and FSDP require of a run, agreement of the ranks, and how a process ends.

The Trainer wraps and steps every engine; this module does what the Trainer leaves to its caller.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from loramoe.utils import UsageError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def is_fsdp(args: TrainingArguments) -> bool:
    """Whether a run is sharded by FSDP, by flag or by `accelerate launch`."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_engine(args: TrainingArguments) -> None:
    """Refuses FSDP where it cannot run: the Trainer and accelerate fail late, or run DDP without notice."""
    if not is_fsdp(args):
        return
    origin = f"fsdp={args.fsdp!r}" if args.fsdp else "ACCELERATE_USE_FSDP, which accelerate launch sets"
    if args.use_cpu or not torch.cuda.is_available():
        raise UsageError(
            f"FSDP needs GPUs, and this run has none; {origin} asks for it. Set --deepspeed configs/zero3.json "
            "(engine=zero3) to shard the weights on a CPU, or neither for DDP."
        )
    config = args.fsdp_config if args.fsdp and isinstance(args.fsdp_config, dict) else {}
    default = "2" if args.fsdp else os.environ.get("FSDP_VERSION", "1")
    version = str(config.get("version", config.get("fsdp_version", default)))
    if version != "2":  # flat parameters mix frozen and trained weights
        raise UsageError(f"FSDP must have version 2, as in configs/fsdp2.json; got {version} ({origin}). Set it.")


def start_engine(args: TrainingArguments, generates: bool = False, load_in_kbits: int | None = None) -> None:
    """Prepares the engine of a run, or refuses it; to be called before the base model is loaded.

    ZeRO-3 shards each weight while it is loaded. On GPUs accelerate has initialised DeepSpeed's processes by then. On
    CPUs it has not, and DeepSpeed would take each process for the only one.
    """
    check_engine(args)  # again: by now the Trainer has read the file that fsdp_config names
    sharded = "FSDP" if is_fsdp(args) else "ZeRO-3" if args.deepspeed and is_deepspeed_zero3_enabled() else None
    if sharded and load_in_kbits in (4, 8):
        raise UsageError(
            f"{sharded} cannot shard weights of {load_in_kbits} bits; got load_in_kbits={load_in_kbits}. Set "
            "--deepspeed ds_config.json (ZeRO-2) or leave it out for DDP, or set --load_in_kbits 16."
        )
    if generates and sharded == "FSDP":
        raise UsageError(
            "recall_file makes the model generate, which FSDP cannot. Leave --recall_file out and measure the saved "
            "adapter with loramoe evaluate, or set --deepspeed configs/zero3.json."
        )
    if args.deepspeed and args.use_cpu:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")


def whole_adapter(model: nn.Module, keep: bool = True) -> dict[str, Any]:
    """Gathers the state of a model without frozen parameters, one tensor at a time: the base model stays sharded.

    Under ZeRO-3 and FSDP every process must call this, as each holds a part of every tensor; those that do not `keep`
    the state return none of it.
    """
    state: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        gathered: Any = contextlib.nullcontext()
        if isinstance(value, nn.Parameter):
            if not value.requires_grad:
                continue
            if is_deepspeed_zero3_enabled():
                import deepspeed

                gathered = deepspeed.zero.GatheredParameters([value])
        with gathered:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if keep:
                state[name] = whole.detach().to("cpu", copy=True) if isinstance(value, nn.Parameter) else whole
    return state


def decide_on_rank_0(decide: Callable[[], T]) -> T:
    """Lets rank 0 decide for all ranks, which may see other files; all of them must call this."""
    decision: list[Any] = [None, None]
    if PartialState().process_index == 0:
        try:
            decision[0] = decide()
        except (OSError, ValueError) as refusal:
            decision[1] = refusal
    result, error = broadcast_object_list(decision)
    if error is not None:
        raise error
    return cast(T, result)


def exit_process(code: int = 0) -> None:
    """Ends this process, if it is one of several, without tearing the interpreter down; else does nothing.

    A thread of gloo that drops the last reference to a tensor asks for Python's lock, which aborts the process (exit
    code -6) while the interpreter is torn down. `destroy_process_group` does not end these threads while DDP or
    DeepSpeed holds a group, and may deadlock (torch 2.13). So this does what a normal end does, and calls `os._exit`.
    """
    if PartialState().num_processes == 1:
        return
    if code == 0 and PartialState().device.type != "cpu":
        PartialState().destroy_process_group()  # as NCCL asks for; after a failure it might wait for the others
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its own children
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_with_launcher() -> None:
    """Lets Linux kill this process when its launcher dies; does nothing in a process that torchrun has not started.

    A launcher that is killed cannot stop its workers: they would go on, and write where the next start writes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
