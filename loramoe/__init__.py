"""LoRAMoE: LoRA experts and a router in parallel to the linear layers of a frozen model, with a balancing constraint.

Importing this package registers the method with the installed peft, as soon as that is imported. It imports neither
torch nor peft by itself, so it costs nothing, and the overlays can use it during peft's own import.

    import loramoe
    from peft import LoraMoeConfig, get_peft_model
"""

from __future__ import annotations

import importlib
import warnings
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


def _module(name: str) -> Any:
    return importlib.import_module(f"loramoe.{name}")


when_imported("peft", lambda _: _module("registration").register())
when_imported("trl.trainer.sft_trainer", lambda trl: _module("registration").register_sft_trainer(trl.SFTTrainer))
when_imported(
    "transformers.trainer_pt_utils", lambda utils: _module("compat.trainers").extend_label_smoother(utils.LabelSmoother)
)
when_imported("transformers.models.auto.configuration_auto", lambda auto: _module("serving").add_config_names(auto))
