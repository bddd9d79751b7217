"""Fine-tuning with LoRAMoE: flags, model, trainer, checkpoints, the run and what it prints.

`run_sft(parse([...]))` is `loramoe train …` from Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from loramoe.training.arguments.parser import parse
    from loramoe.training.run import run_sft
    from loramoe.training.trainer import LoraMoeTrainer

__all__ = ["LoraMoeTrainer", "parse", "run_sft"]
_MODULES: Final = {"LoraMoeTrainer": "trainer", "parse": "arguments.parser", "run_sft": "run"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is asked for: the launcher needs none of them, and starts faster."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
