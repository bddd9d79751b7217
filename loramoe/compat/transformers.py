"""What differs between versions of transformers, and what it does not let one declare."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

from packaging.version import Version
from torch import nn

COUNTS_EVERY_LABEL = Version(importlib.metadata.version("transformers")) < Version("5.10")


def skips_first_label(model: nn.Module) -> bool:
    """Return whether the Trainer leaves the first label of each row out of `num_items_in_batch`.

    Before transformers 5.10 it never does; since then for each model whose loss shifts labels.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return not COUNTS_EVERY_LABEL and LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss


def declare_task_types(model_class: type) -> None:
    """Add `task_types=None` to the signature that a model's forward shows.

    The Trainer reads that signature to decide which columns of a data set the model can use.
    """
    forward: Callable[..., Any] = model_class.forward  # type: ignore[attr-defined]
    signature = inspect.signature(forward)
    if "task_types" in signature.parameters:
        return
    declared = inspect.Parameter(
        "task_types", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="torch.LongTensor | None"
    )
    *others, last = signature.parameters.values()
    parameters = [*others, declared, last] if last.kind is inspect.Parameter.VAR_KEYWORD else [*others, last, declared]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
