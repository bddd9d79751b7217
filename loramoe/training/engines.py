"""What the engines that shard a run among processes ask of it: DeepSpeed's ZeRO, and FSDP.

docs/distributed.md says which engine to take when. All of them are launched, wrapped and stepped by the Trainer; here
is what it leaves to its caller.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from loramoe.training.errors import UsageError


def check_engine(args: TrainingArguments) -> None:
    """Refuses FSDP without a GPU, where accelerate would fail late (version 1) or quietly run DDP (version 2).

    Args:
        args: The training's arguments, before or after their own checks.

    Raises:
        ValueError: If FSDP is asked for, by flag or by `accelerate launch`, and there is no GPU to run it on.
    """
    if _is_fsdp(args) and (args.use_cpu or not torch.cuda.is_available()):
        origin = f"fsdp={args.fsdp!r}" if args.fsdp else "ACCELERATE_USE_FSDP, which accelerate launch sets"
        raise ValueError(
            f"FSDP needs GPUs, and this run has none; it was asked for by {origin}. On a CPU the weights would not be "
            "sharded at all. Set --deepspeed configs/zero3.json to shard them, or neither for plain DDP."
        )


def _is_fsdp(args: TrainingArguments) -> bool:
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def start_engine(args: TrainingArguments, asks: bool = False) -> None:
    """Has DeepSpeed join the processes of a run on CPUs; to be called before the base model is loaded.

    ZeRO-3 shards each weight while it is loaded. On GPUs accelerate has told DeepSpeed of the processes by then; on
    CPUs it has not, and DeepSpeed would take each process for the only one.

    Args:
        args: The training's arguments.
        asks: Whether the recall will be measured.

    Raises:
        UsageError: If nothing is to be trained, and DeepSpeed would have nothing to shard; or if the recall is to be
            measured under FSDP.
    """
    if asks and _is_fsdp(args):
        raise UsageError(
            "recall_file has the model generate, which FSDP does not gather its weights for. Leave --recall_file out "
            "and ask the saved adapter with python -m loramoe.recall, or set --deepspeed configs/zero3.json."
        )
    if not args.deepspeed:
        return
    if not args.do_train and not is_deepspeed_zero3_enabled():
        raise UsageError(
            f"evaluation alone has nothing for ZeRO-1 and ZeRO-2 to shard; got deepspeed={args.deepspeed!r}. Leave "
            "--deepspeed out (for run_loramoe.sh: deepspeed=), or set --deepspeed configs/zero3.json, which shards the "
            "base model."
        )
    if args.use_cpu:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")


def whole_adapter(model: nn.Module, keep: bool = True) -> dict[str, Any]:
    """The state of a model without what is frozen, gathered tensor by tensor: a base of 70 B never comes to the host.

    Under ZeRO-3 and FSDP every process has to call this, as each holds a part of every tensor.

    Args:
        model: The adapted model, not the engine around it.
        keep: Whether this process wants the result; the others only take part in the gathering.

    Returns:
        `model.state_dict()` without frozen parameters, the others copied to the host; empty unless keep.
    """
    kept: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, nn.Parameter):
            if not value.requires_grad:
                continue
            value = _whole(value)  # noqa: PLW2901  # on every process
        if keep:
            kept[name] = value
    return kept


def _whole(parameter: nn.Parameter) -> Tensor:
    """A copy on the host of all of a parameter, of which this process may hold a part."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().to("cpu", copy=True)
    with _gathered(parameter):
        return parameter.detach().to("cpu", copy=True)


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return cast("AbstractContextManager[Any]", deepspeed.zero.GatheredParameters([parameter]))
