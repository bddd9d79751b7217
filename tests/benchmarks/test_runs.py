"""Each benchmark runs with tiny sizes, and wrong results are not timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import harness, packing, sides, tables
from benchmarks.__main__ import BENCHMARKS, main

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_quick_run_of_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert main(["--device", "cpu", "--quick"]) == 0
    torch.set_num_threads(threads)
    for name in BENCHMARKS:
        result = json.loads((tmp_path / "quick" / f"{name}.cpu.json").read_text())
        assert "| --- |" in tables.BENCHMARKS[name](result)


@pytest.mark.parametrize("wrong", ["naive", "fused"])
def test_a_side_that_computes_something_else_is_not_timed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = sides.linear_side

    def spoilt(name: str, *arguments: object) -> torch.nn.Module:
        side = build(name, *arguments)  # type: ignore[arg-type]
        if name == wrong:
            side.register_forward_hook(lambda module, args, output: output * 1.001)
        return side

    base, x, dy = torch.nn.Linear(8, 12, bias=False).requires_grad_(False), torch.randn(5, 8), torch.randn(5, 12)
    assert max(sides.check(base, x, dy, sides.Mixture()).values()) < 1e-5
    monkeypatch.setattr(sides, "linear_side", spoilt)
    with pytest.raises(AssertionError, match=wrong):
        sides.check(base, x, dy, sides.Mixture())


def test_packed_batches_with_another_loss_are_not_timed() -> None:
    models = packing.models(packing.SHAPES["quick"], CPU, torch.float32)
    samples = packing.draw_samples(4, vocabulary=64)
    assert packing.check(models, samples, CPU) < 1e-5
    for parameter in sides.trained(models["packed"]):
        parameter.data.mul_(2)
    with pytest.raises(AssertionError, match="not timed"):
        packing.check(models, samples, CPU)
