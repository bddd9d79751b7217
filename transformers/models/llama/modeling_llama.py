"""Extends the installed `transformers.models.llama.modeling_llama`: the forward declares `task_types`.

Nothing reads it there: an adapted model takes it out of the call before (see `loramoe/hooks.py`). It is declared
because the Trainer keeps just those columns of a data set that the forward declares.
"""

from types import ModuleType

from loramoe.compat.transformers import declare_task_types


def extend(module: ModuleType) -> None:
    """`LlamaForCausalLM.forward(…, task_types=None)`, a tensor [B] of int64."""
    declare_task_types(module.LlamaForCausalLM)
