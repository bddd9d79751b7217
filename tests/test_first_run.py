"""The first run, `bash run_loramoe.sh` and nothing else: the constraint separates the task types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import skip_without_launcher

ROOT = Path(__file__).resolve().parent.parent


def shares_of_groups(folder: Path) -> torch.Tensor:
    """Share of the gate weight of each task type that goes to the experts of each type, [T, T], mean over layers."""
    shares = json.loads((folder / "report" / "experts.json").read_text(encoding="utf-8"))
    gate_TE = torch.tensor(shares["gate_TLE"]).mean(dim=1)
    of_type_TE = torch.tensor(shares["task_types"])[:, None] == torch.tensor(shares["expert_types"])
    return gate_TE @ of_type_TE.to(gate_TE).T


@pytest.mark.slow(minutes=2)
def test_the_first_run_reaches_the_closed_form(tmp_path: Path) -> None:
    """(1 + a) / 2 = 0.55 for the experts of a sample's own type, with a = 0.1; tasks are longer than questions."""
    skip_without_launcher()
    environment = {**os.environ, "output_dir": str(tmp_path / "run"), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHON": sys.executable, "report_to": "none"}
    subprocess.run(["bash", str(ROOT / "run_loramoe.sh")], env=environment, check=True, capture_output=True)
    expected = torch.tensor([[0.55, 0.45], [0.45, 0.55]])
    torch.testing.assert_close(shares_of_groups(tmp_path / "run"), expected, rtol=0, atol=0.02)
