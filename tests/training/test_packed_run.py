"""Training with `--padding_free`, `--packing` and `--group_by_length`: the same trajectory, or other batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaModel

from loramoe.training.parser import parse
from loramoe.training.run import run_sft
from loramoe.training.trainer import LoraMoeTrainer
from loramoe.utils import UsageError

ROOT = Path(__file__).parents[2]
LOGGED = {"loss", "blc", "grad_norm", "eval_loss", "eval_blc"}


def logged(output_dir: Path) -> list[dict[str, float]]:
    """What was logged of loss, constraint and shares, step by step."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k in LOGGED or "share/" in k} for entry in history]


def adapter(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "sft_lora_model" / "adapter_model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    got, expected = logged(one), logged(other)
    assert len(got) == len(expected) > 5
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    torch.testing.assert_close(adapter(one), adapter(other), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trajectory_is_that_of_padded_batches(tmp_path: Path, train: Callable[..., Any], accumulation: int) -> None:
    flags = {
        "gradient_accumulation_steps": accumulation,
        "lora_dropout": 0,
        "logging_steps": 1,
        "eval_strategy": "steps",
    }
    flags |= {"eval_steps": 2, "blc_weight": 1}
    results = {packing: train(tmp_path / packing, padding_free=packing, **flags) for packing in ("true", "false")}
    assert_same_run(tmp_path / "true", tmp_path / "false")
    assert results["true"]["after"] == pytest.approx(results["false"]["after"], rel=1e-4)


def test_a_packed_run_is_resumed_only_packed(tmp_path: Path, train: Callable[..., Any]) -> None:
    train(tmp_path, padding_free="true", max_steps=3)
    (tmp_path / "metrics.json").unlink()  # as if interrupted
    with pytest.raises(FileExistsError, match="padding_free was True, now False"):
        train(tmp_path, max_steps=3)


def test_a_model_that_lets_samples_see_each_other_is_refused(
    tmp_path: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaModel.forward

    def blind(self: Any, *args: Any, position_ids: Any = None, cu_seq_lens_q: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", blind)
    with pytest.raises(UsageError, match="does not keep the samples of a packed row apart"):
        train(tmp_path, packing="true")


def test_rows_of_similar_length_come_together(
    tmp_path: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, list[float]] = {"true": [], "false": []}
    grouped = "false"
    compute = LoraMoeTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            shapes[grouped].append(inputs["attention_mask"].float().mean().item())
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoraMoeTrainer, "compute_loss", spy)
    for grouped in shapes:
        train(tmp_path / grouped, group_by_length=grouped, max_steps=12, save_steps=100)
    full = {name: sum(values) / len(values) for name, values in shapes.items()}
    assert len(shapes["true"]) == 12
    assert full["true"] > full["false"] + 0.05


def test_packed_rows_are_filled_with_whole_samples(
    tmp_path: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    compute = LoraMoeTrainer.compute_loss

    def spy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            seen.append(list(inputs["sample_lengths"]))
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoraMoeTrainer, "compute_loss", spy)
    train(tmp_path, packing="true", max_seq_length=64, per_device_train_batch_size=1, num_train_epochs=1, max_steps=-1)
    assert sum(len(lengths) for lengths in seen) == 48
    assert all(sum(lengths) <= 64 for lengths in seen)
    assert sum(map(sum, seen)) / (64 * len(seen)) > 0.85


@pytest.mark.slow
def test_two_processes_are_two_accumulated_forwards(tmp_path: Path, tiny_task: Any, own_dataset_cache: None) -> None:
    flags = {"padding_free": "true", "lora_dropout": 0, "logging_steps": 1, "max_steps": 4, "blc_weight": 1}
    run_sft(parse(tiny_task.flags(tmp_path / "one", gradient_accumulation_steps=2, **flags)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "train.py"), *tiny_task.flags(tmp_path / "two", **flags)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    torch.testing.assert_close(adapter(tmp_path / "two"), adapter(tmp_path / "one"), rtol=1e-3, atol=1e-5)
