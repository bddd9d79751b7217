"""What several test files look up in a model, change in an adapter's folder, or run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version
from torch import nn

from loramoe.tuner.layer import LoraMoeLayer

later_transformers = pytest.mark.skipif(Version(transformers.__version__) < Version("5"), reason="needs transformers 5")


def layers_of(model: nn.Module) -> dict[str, LoraMoeLayer]:
    """The adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraMoeLayer)}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def run_python(code: str, folder: Path, *options: str, path: str = "", python: str = sys.executable) -> str:
    """Run code as a script in a folder, with `path` as PYTHONPATH; its output, or its error as a RuntimeError."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [python, *options, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout
