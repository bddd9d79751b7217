"""The words that end a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from loramoe.report import Shares
from loramoe.training.parser import parse
from loramoe.training.summary import before_and_after, final_summary

HISTORY = [
    {"step": 0, "recall": 0.9},
    {"step": 0, "eval_loss": 2.0, "eval_perplexity": 7.4},
    {"step": 5, "eval_loss": 1.5, "eval_perplexity": 4.5},
    {"step": 9, "eval_loss": 1.0, "eval_perplexity": 2.7, "eval_loss/knowledge": 0.5, "eval_blc": 3.0},
    {"step": 9, "recall": 0.8},
]


def test_before_is_of_step_zero_and_after_is_the_last():
    assert before_and_after(HISTORY) == {
        "before": {"loss": 2.0, "perplexity": 7.4, "recall": 0.9},
        "after": {"loss": 1.0, "perplexity": 2.7, "loss/knowledge": 0.5, "recall": 0.8},
    }
    assert before_and_after(HISTORY[2:])["before"] == {}
    assert before_and_after([{"step": 3, "eval_held_out_loss": 1.0}])["after"] == {"held_out_loss": 1.0}


def words(tmp_path: Path, *flags: str) -> str:
    needed = ["--model_name_or_path", "base", "--dataset_dir", "rows", "--output_dir", str(tmp_path)]
    return final_summary(parse([*needed, *flags]), before_and_after(HISTORY))


def test_the_words_say_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said = words(tmp_path, "--prompt_template", "chat", "--recall_file", "facts.json")
    adapter = tmp_path / "sft_lora_model"
    assert f'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "{adapter}")' in said
    assert f"{sys.executable} -m loramoe.generate --adapter {adapter} --prompt" in said
    assert f"{sys.executable} -m loramoe.evaluate --adapter {adapter} --file facts.json" in said
    assert "evaluation loss: 2 before, 1 after" in said
    assert "evaluation loss (knowledge): 0.5 after" in said
    assert "recall: 0.9 before, 0.8 after" in said
    assert "figure" not in said


def test_what_the_experts_of_a_type_get_of_its_samples(tmp_path: Path):
    gate_TLE = torch.tensor([[[0.1, 0.3, 0.6]], [[0.5, 0.3, 0.2]]], dtype=torch.float64)
    two = {"tokens_T": torch.ones(2), "constraint": 0.0, "constraint_L": torch.zeros(1), "linears": ("up_proj",)}
    shares = Shares(gate_TLE=gate_TLE, task_types=(0, 1), expert_types=(1, 1, 0), **two)
    needed = ["--model_name_or_path", "base", "--dataset_dir", "rows", "--output_dir", str(tmp_path)]
    said = final_summary(parse(needed), before_and_after(HISTORY), shares)
    assert "the experts of a sample's own type: 60.0 % (type 0), 80.0 % (type 1)" in said


def test_without_facts_an_evaluation_tool_is_named(tmp_path: Path):
    (tmp_path / "expert_shares.png").touch()
    said = words(tmp_path)
    assert "-m lm_eval --model hf" in said
    assert f"figure    {tmp_path / 'expert_shares.png'}" in said


def test_the_interpreter_is_named_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    said = words(tmp_path)
    assert "  .venv/bin/python -m loramoe.generate" in said
    assert "PYTHONPATH=. .venv/bin/python -m lm_eval" in said
