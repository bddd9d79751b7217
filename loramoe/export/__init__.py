"""Export of an adapter for tools that know only LoRA or whole models, and conversion of original adapters.

`lora` makes a plain LoRA of an adapter, `distance` measures how far that is from it, `run` writes the folder, and
`original` converts from and to the original code's format.
"""

from loramoe.export.run import export_lora

__all__ = ["export_lora"]
