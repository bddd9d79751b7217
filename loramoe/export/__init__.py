"""The export that merging cannot be: a plain LoRA that stands in for a LoRAMoE adapter where only LoRA is known.

Each linear's gates are replaced by their mean ḡ over calibration rows, and the mixture becomes one LoRA of rank E·R:

    y = W0 x + (alpha / R) · Σ_e ḡ_e · B_e A_e x  =  W0 x + (alpha·E / (E·R)) · [ḡ_1 B_1 … ḡ_E B_E] A x

ḡ is the constant that is nearest to the gates in the mean square (`mean_gates`); `plain_lora` makes the LoRA of it,
`distance` and `linear_error` measure how far it is from the mixture, `card` says so beside it. When not to use it:
docs/export.md.

    python -m loramoe.export ADAPTER OUT --calibration FILE --test FILE

The package is not called `export_lora`, because importing a submodule binds its name in `loramoe`, where the function
of that name belongs.
"""

from loramoe.export.adapted import ExportError
from loramoe.export.distance import Distance
from loramoe.export.gates import GateStatistics, mean_gates
from loramoe.export.lora import as_plain_lora, plain_lora
from loramoe.export.report import ExportReport
from loramoe.export.run import export_lora

__all__ = [
    "Distance",
    "ExportError",
    "ExportReport",
    "GateStatistics",
    "as_plain_lora",
    "export_lora",
    "mean_gates",
    "plain_lora",
]
