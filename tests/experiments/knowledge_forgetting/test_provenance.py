"""Fingerprints change with what shapes a result, and with nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from experiments.knowledge_forgetting import provenance
from experiments.knowledge_forgetting.provenance import SOURCES, code_fingerprint, provenance_of, weights_fingerprint
from experiments.knowledge_forgetting.tiny.scale import TinyScale
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale

ROOT = Path(__file__).resolve().parents[3]


def test_a_comment_changes_no_fingerprint_and_a_constant_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "REPO", tmp_path)
    texts = ['"""Doc."""\nRATE = 3\n', '"""Other words."""\n\nRATE = 3  # why\n', "RATE = 4\n"]
    found = []
    for text in texts:
        (tmp_path / "code.py").write_text(text)
        found.append(code_fingerprint(["code.py"]))
    assert found[0] == found[1] != found[2]


def test_the_last_bit_of_a_weight_counts():
    model = torch.nn.Linear(3, 3)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert weights_fingerprint(model) != before


def test_all_that_shapes_a_result_is_there():
    assert all((ROOT / source).exists() for source in (*SOURCES, *TinyScale.sources))


def test_what_a_grid_is_made_with():
    told = provenance_of(MadeUpScale())
    assert set(told) == {"commit", "dirty", "code", "base", "precision", "items", "versions", "hardware", "date"}
    assert told == provenance_of(MadeUpScale())
    if not torch.cuda.is_available():
        assert told["hardware"].endswith(f" with {torch.backends.cpu.get_cpu_capability()}")


def test_tables_that_a_grid_has_made_are_no_change_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    tables, code = tmp_path / provenance.RESULTS / "tables.md", tmp_path / "code.py"
    tables.parent.mkdir(parents=True)
    tables.write_text("old")
    code.write_text("old")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    subprocess.run(["git", *who, "commit", "-qm", "first"], cwd=tmp_path, check=True)
    tables.write_text("new")
    assert not provenance_of(MadeUpScale())["dirty"]
    code.write_text("new")
    assert provenance_of(MadeUpScale())["dirty"]


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_is_told(bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MadeUpScale, "bf16", bf16)
    assert provenance_of(MadeUpScale())["precision"] == precision
