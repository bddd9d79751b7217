"""LoRAMoE: LoRA experts and a router beside the linears of a frozen model, with a localized balancing constraint.

Importing this package registers the method with the installed peft: at once if peft has been imported, else as soon as
it is. It imports neither torch nor peft by itself, so it costs nothing at the head of a script, and the overlays can
use it in the midst of peft's own import.

    import loramoe
    from peft import LoraMoeConfig, get_peft_model
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from loramoe.overlay import is_imported, when_imported

if TYPE_CHECKING:
    from loramoe.balance import balance_loss
    from loramoe.config import LoraMoeConfig
    from loramoe.export import export_lora
    from loramoe.hooks import last_balance
    from loramoe.layer import LoraMoeLayer, use_implementation
    from loramoe.model import LoraMoeModel
    from loramoe.observed import Balance

__version__ = "0.1.0"
__all__ = [
    "Balance",
    "LoraMoeConfig",
    "LoraMoeLayer",
    "LoraMoeModel",
    "balance_loss",
    "export_lora",
    "last_balance",
    "use_implementation",
]

_HOME = {
    "Balance": "loramoe.observed",
    "LoraMoeConfig": "loramoe.config",
    "LoraMoeLayer": "loramoe.layer",
    "LoraMoeModel": "loramoe.model",
    "balance_loss": "loramoe.balance",
    "export_lora": "loramoe.export",
    "last_balance": "loramoe.hooks",
    "use_implementation": "loramoe.layer",
}


# By what one can tell that a module which needs peft has run to its end.
_LAST_NAMES = {**_HOME, "TunerBase": "loramoe.legacy"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("peft") is None:
        raise ModuleNotFoundError("loramoe extends peft, which is not installed. Run: pip install peft", name="peft")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _register(module: ModuleType) -> None:
    """Register, if peft has run and none of our own modules is half-way through the import that led to peft's."""
    peft_has_run = module.__name__ == "peft" or is_imported("peft")
    half_way = any(home in sys.modules and name not in vars(sys.modules[home]) for name, home in _LAST_NAMES.items())
    if peft_has_run and not half_way:
        importlib.import_module("loramoe.compat").register()


def _extend_trainer(trainer_pt_utils: ModuleType) -> None:
    importlib.import_module("loramoe.compat").extend_label_smoother(trainer_pt_utils.LabelSmoother)


def _extend_trl(sft_trainer: ModuleType) -> None:
    importlib.import_module("loramoe.compat").extend_sft_trainer(sft_trainer.SFTTrainer)


for _name in ("peft", *dict.fromkeys(_LAST_NAMES.values())):
    when_imported(_name, _register)
when_imported("transformers.trainer_pt_utils", _extend_trainer)
when_imported("trl.trainer.sft_trainer", _extend_trl)
