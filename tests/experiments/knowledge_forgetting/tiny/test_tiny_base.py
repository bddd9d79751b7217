"""The base model is made once, whole, and always the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.knowledge_forgetting.tiny import base


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a base goes that is trained for two steps."""
    monkeypatch.setattr(base, "FOLDER", tmp_path / "base")
    monkeypatch.setattr(base, "_batches", lambda world, asked: [[[1, 5, 6, 7, 2]], [[1, 8, 9, 2]]])
    return tmp_path / "base"


def test_the_base_is_made_once_and_always_the_same(folder: Path):
    threads = torch.get_num_threads()
    base.make_base()
    weights = folder / "model.safetensors"
    first, written = weights.read_bytes(), weights.stat().st_mtime_ns
    base.make_base()
    assert weights.stat().st_mtime_ns == written
    weights.unlink()
    base.make_base()
    assert weights.read_bytes() == first
    assert torch.get_num_threads() == threads
