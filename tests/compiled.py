"""What DeepSpeed compiles for the CPU at its first use, compiled before any test needs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock

COMPILE = """
from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, ShareMemCommBuilder

for builder in (ShareMemCommBuilder, CPUAdamBuilder):
    builder().load(verbose=False)
"""


def compiled_for_cpu() -> Path:
    """Has DeepSpeed compile, unless it has.

    Otherwise the first test would compile within its own time limit; and a test that is killed meanwhile leaves a lock
    behind, at which every later use of that cache waits for ever.

    Returns:
        The folder, for `TORCH_EXTENSIONS_DIR`.
    """
    cache = Path(sys.prefix) / "torch_extensions"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside this Python
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(cache), "DS_ACCELERATOR": "cpu", "PATH": path}
    with FileLock(f"{cache}.lock"):
        for lock in cache.glob("*/lock"):
            if time.time() - lock.stat().st_mtime > 600:  # nothing here takes that long: its owner was killed
                lock.unlink()
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, check=False, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return cache
