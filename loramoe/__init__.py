"""LoRAMoE: LoRA experts and a router in parallel to the linear layers of a frozen model, with a balancing constraint.

Importing this package registers the method with the installed peft, as soon as that is imported. It imports neither
torch nor peft by itself, so it costs nothing, and the overlays can use it during peft's own import.

    import loramoe
    from peft import LoraMoeConfig, get_peft_model
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loramoe.compat.overlay import when_imported

if TYPE_CHECKING:
    from loramoe.balance.constraint import balance_loss
    from loramoe.export import export_lora
    from loramoe.tuner.config import LoraMoeConfig
    from loramoe.tuner.forward_pass import collect_aux_loss
    from loramoe.tuner.hooks import BalanceStats, last_balance
    from loramoe.tuner.layer import LoraMoeLayer
    from loramoe.tuner.model import LoraMoeModel, use_implementation

__version__ = "0.1.0"
__all__ = [
    "BalanceStats",
    "LoraMoeConfig",
    "LoraMoeLayer",
    "LoraMoeModel",
    "balance_loss",
    "collect_aux_loss",
    "export_lora",
    "last_balance",
    "use_implementation",
]

_HOME = {
    "loramoe.balance.constraint": ("balance_loss",),
    "loramoe.export": ("export_lora",),
    "loramoe.tuner.config": ("LoraMoeConfig",),
    "loramoe.tuner.forward_pass": ("collect_aux_loss",),
    "loramoe.tuner.hooks": ("BalanceStats", "last_balance"),
    "loramoe.tuner.layer": ("LoraMoeLayer",),
    "loramoe.tuner.model": ("LoraMoeModel", "use_implementation"),
}
_RENAMED = {"Balance": "BalanceStats"}  # until the next release


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"loramoe.{name} is now loramoe.{_RENAMED[name]}.", FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    for home, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _register(peft: ModuleType) -> None:
    importlib.import_module("loramoe.registration").register()


def _extend_trainer(trainer_pt_utils: ModuleType) -> None:
    importlib.import_module("loramoe.compat.trainers").extend_label_smoother(trainer_pt_utils.LabelSmoother)


def _extend_trl(sft_trainer: ModuleType) -> None:
    importlib.import_module("loramoe.registration").register_sft_trainer(sft_trainer.SFTTrainer)


when_imported("peft", _register)
when_imported("transformers.trainer_pt_utils", _extend_trainer)
when_imported("trl.trainer.sft_trainer", _extend_trl)
