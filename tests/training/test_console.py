"""A run prints the totals; the figures of the model's parts go to the history, and so to every tracker."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from loramoe.training import console, trainer

FIGURES = {"cov": 0.5, "routing/cov/early": 0.25, "share/type0/group0": 0.75}


@pytest.mark.parametrize("disable_tqdm", ["true", "false"])
def test_totals_are_printed_and_everything_is_kept(
    train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, disable_tqdm: str
):
    monkeypatch.setattr(trainer, "live_figures", lambda shares: FIGURES)
    train(tmp_path, disable_tqdm=disable_tqdm, max_steps=2)
    printed = re.sub(r"'([\d.]+)'", r"\1", "".join(capsys.readouterr()))  # transformers 4.57 has no quotes there
    for line in ("'cov': 0.5, 'share/type0/group0': 0.75", "'eval_cov': 0.5, 'eval_share/type0/group0': 0.75"):
        assert line in printed
    assert "routing/" not in printed
    assert "total_flos" not in printed
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["routing/cov/early"] for entry in history if "loss" in entry] == [0.25]
    assert {entry["eval_routing/cov/early"] for entry in history if "eval_loss" in entry} == {0.25}


def test_a_trainer_without_either_callback_gets_none(tiny_llama, tmp_path: Path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to=[], disable_tqdm=True)
    quiet = Trainer(model=tiny_llama(), args=args)
    quiet.pop_callback(console.PrinterCallback)
    before = list(quiet.callback_handler.callbacks)
    console.print_totals_only(quiet)
    assert quiet.callback_handler.callbacks == before
