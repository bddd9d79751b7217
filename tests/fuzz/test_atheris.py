"""Coverage-guided fuzzing of what reads files, for a fixed number of runs, with the seed printed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
RUNS = {"rows": 20_000}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install atheris")
@pytest.mark.parametrize("target", RUNS)
def test_a_reader(target: str, tmp_path: Path) -> None:
    seed = int(os.environ["CHAOS_SEED"])
    script = str(REPOSITORY / "tests" / "fuzz" / "atheris_targets.py")
    command = [sys.executable, script, target, f"-runs={RUNS[target]}", f"-seed={seed}", "-max_len=512", "-timeout=60"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    print(f"atheris: {target}, seed {seed}, {RUNS[target]:,} runs")
    assert ran.returncode == 0, f"seed {seed}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    assert f"Done {RUNS[target]} runs" in ran.stderr
