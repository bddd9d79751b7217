"""The forward of the installed LlamaForCausalLM declares `task_types`, so the Trainer keeps that column of data."""

from types import ModuleType

from loramoe.compat.trainers import declare_task_types


def extend(module: ModuleType) -> None:
    """`LlamaForCausalLM.forward(…, task_types=None)`, a tensor [B] of int64."""
    declare_task_types(module.LlamaForCausalLM)
