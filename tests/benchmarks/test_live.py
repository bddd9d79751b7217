"""What it costs to log the experts: the benchmark on the embedded model, and what it derives, by known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import live, tables


@pytest.mark.slow
def test_the_embedded_model_is_measured(quick_results: Path) -> None:
    (setting,) = json.loads((quick_results / "live.cpu.json").read_text())["settings"]
    assert setting["model"] == "data/tiny_llama"
    assert setting["figures"] == 27
    assert set(setting["seconds"]) == {"without", "with", "gather", "gather_and_log"}
    assert setting["share_every_10"]["p50"] > 0
    assert setting["share_every_step"]["p50"] > 0


def test_shares_by_known_answer() -> None:
    seconds = {"without": [2.0, 4.0], "with": [2.2, 4.4], "gather": [0.02, 0.04], "gather_and_log": [0.22, 0.44]}
    compared = live.compare(seconds)
    assert compared["step_ms"] == 3000
    assert compared["share_every_step"]["p50"] == pytest.approx(0.11)
    assert compared["share_every_10"]["p50"] == pytest.approx(0.02)
    assert compared["with_over_without"]["p50"] == pytest.approx(1.1)


def test_the_table_has_both_ways_of_measuring() -> None:
    quantiles = {"p20": 1.0, "p50": 1.034, "p80": 1.1}
    shares = {"share_every_10": quantiles, "share_every_step": quantiles, "with_over_without": quantiles}
    setting = {"model": "m", "layers": 2, "rows": 4, "length": 8, "step_ms": 3, "figures": 9, **shares}
    head, _, row = tables._live({"settings": [setting]}).splitlines()
    assert head.endswith(" | at every step | whole step, with / without |")
    assert row.endswith(" | 103.40% (100.00%–110.00%) | 1.03 (1.00–1.10) |")


def test_the_step_without_logging_learns(adapted) -> None:
    model = adapted(blc_weight=0.1, blc_alpha=0.1).train()
    ids = torch.arange(3, 23).reshape(2, 10)
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    live.training_step(model, {"input_ids": ids, "labels": ids, "task_types": torch.tensor([0, 1])})()
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)


def test_what_is_timed_is_what_the_trainer_logs(adapted, tmp_path: Path) -> None:
    model = adapted(blc_weight=0.1, blc_alpha=0.1)
    ids = torch.arange(3, 23).reshape(2, 10)
    watched = live.Live(model, {"input_ids": ids, "labels": ids, "task_types": torch.tensor([0, 1])}, str(tmp_path))
    watched.gather()
    figures = watched.log()
    balance = live.last_balance(model)
    assert figures["blc"] == pytest.approx(balance.constraint.item())
    assert figures["share/type1/group1"] == pytest.approx(balance.gate_TLE[1, :, :1].mean().item())
    watched.writer.close()
