"""Export of an adapter for tools that know only LoRA or whole models, and conversion of original adapters.

`adapter` finds the active adapter and averages its gates, `lora` makes a plain LoRA of it, `distance` measures how far
that is from the adapter, `run` writes the folder, `original` converts from and to the original code's format.
"""

from loramoe.export.adapter import ExportError
from loramoe.export.run import export_lora

__all__ = ["ExportError", "export_lora"]
