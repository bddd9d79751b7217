"""What several test files look up in a model, or change in an adapter's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from loramoe import checkpoint
from loramoe.layer import LoraMoeLayer


def layers_of(model: nn.Module) -> dict[str, LoraMoeLayer]:
    """The adapted linears by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraMoeLayer)}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's configuration."""
    file = folder / checkpoint.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
