"""ZeRO saves whole adapters that load anywhere, cut-off runs go on, and raw FSDP2 trains as if nothing was sharded.

FSDP through the Trainer needs GPUs: the last test here is for them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.conftest import ADAPTER, ROOT, STEPS, Finished, check, torchrun
from tests.plain_loop import make_config, make_rows, plain_loop

pytestmark = pytest.mark.slow

# Evaluation before, within and after; recall; two modules trained whole; a checkpoint in the middle; the page.
WHOLE_RUN = {"do_eval": "true", "eval_strategy": "steps", "eval_steps": 15, "eval_on_start": "true"}
WHOLE_RUN |= {"save_strategy": "steps", "save_steps": 15, "modules_to_save": "embed_tokens,lm_head"}
WHOLE_RUN |= {"experts_page": "true", "per_device_eval_batch_size": 6}


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def zero_run(request: pytest.FixtureRequest, runs: Any, zero: None) -> tuple[Finished, dict[str, object]]:
    """A run with all that a run can have, and what makes it anew."""
    made: dict[str, object] = {"engine": request.param, "recall_file": runs.task.recall_file}
    return runs.together(f"all of {request.param}", **made, **WHOLE_RUN), made


def test_an_adapter_of_zero_is_whole(zero_run: tuple[Finished, Any]) -> None:
    run, _ = zero_run
    shapes = {
        "loramoe_experts.A": {(32, 32), (32, 48)},
        "loramoe_experts.B": {(48, 32), (32, 32)},
        "loramoe_experts.router": {(8, 32), (8, 48)},
    }
    shapes |= {"embed_tokens": {(64, 32)}, "lm_head": {(64, 32)}}
    for of in (".", "checkpoint-15", f"checkpoint-{STEPS}"):
        adapter = run.adapter(of)
        assert len(adapter) == 2 * 3 * 3 + 2
        for kind, expected in shapes.items():
            assert {tuple(tensor.shape) for name, tensor in adapter.items() if kind in name} == expected
        assert all(tensor.dtype == torch.float32 for tensor in adapter.values())
    last, trained = run.adapter(f"checkpoint-{STEPS}"), run.adapter()
    assert all(torch.equal(last[name], trained[name]) for name in trained)
    assert (run.folder / "report" / "experts.html").is_file()


def test_it_loads_anywhere(zero_run: tuple[Finished, Any], runs: Any) -> None:
    """One process without DeepSpeed, which continues from the adapter, first measures what the run measured."""
    finished, _ = zero_run
    changes = {"adapter": finished.folder / ADAPTER, "recall_file": runs.task.recall_file, **WHOLE_RUN}
    again = runs.alone(f"{finished.folder.name}, continued", **changes, max_steps=1)
    assert again.metrics["before"]["loss"] == pytest.approx(finished.metrics["after"]["loss"], rel=1e-6)
    assert again.metrics["before"]["recall"] == finished.metrics["after"]["recall"]


def test_a_run_of_zero_resumes_on_the_same_trajectory(zero_run: tuple[Finished, dict[str, object]], runs: Any) -> None:
    run, made = zero_run
    cut = runs.folder / f"{run.folder.name}, cut off"
    cut.mkdir()
    shutil.copy(run.folder / "arguments.json", cut)
    shutil.copytree(run.folder / "checkpoint-15", cut / "checkpoint-15")
    resumed = runs.together(cut.name, **made, **WHOLE_RUN)
    assert f"resuming from {cut / 'checkpoint-15'}" in (cut / "printed.txt").read_text()
    assert resumed.apart(run) == (0, 0)


def test_a_plain_trainer_under_zero_3_computes_what_a_loop_does(tiny_task: Any, zero: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_task.base), make_config())
    expected, _ = plain_loop(model, make_rows(), 2, accumulation=2)  # two processes are two steps of accumulation
    config = ROOT / "configs/zero3.json"
    torchrun("zero3_worker.py", tiny_task.base, tmp_path, config, folder=tmp_path, DS_ACCELERATOR="cpu")
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("checkpointing", "dtype"), [("false", "float32"), ("true", "float32"), ("false", "bfloat16")])
def test_fsdp2_trains_as_if_nothing_was_sharded(checkpointing: str, dtype: str, tiny_task: Any, tmp_path: Path) -> None:
    """The adapter is float32 whatever the dtype of the base model, and what was saved loads into a plain model."""
    torchrun("fsdp_worker.py", tiny_task.base, tmp_path, checkpointing, dtype, folder=tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["loss"] <= 1e-5
    assert numbers["gradient"] <= 1e-5
    assert numbers["losses"][0] != pytest.approx(numbers["losses"][-1], rel=1e-3), "nothing was learnt"
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(weights) == numbers["tensors"] == 2 * 3 * 3
    assert all(tensor.dtype == torch.float32 and tensor.numel() for tensor in weights.values())
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 23).reshape(2, 10)).logits
    torch.testing.assert_close(logits, torch.load(tmp_path / "logits.pt"), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_fsdp2_through_the_trainer(runs: Any) -> None:
    """Has not run yet: where it does, its first failure is news and not a regression."""
    out = runs.folder / "fsdp2"
    flags = runs.flags(out, {"use_cpu": "false", "bf16": "true", "save_strategy": "steps", "save_steps": 15})
    command = [sys.executable, "-m", "loramoe.training.launch", "nproc_per_node=2", "engine=fsdp2", "train.py", *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    check(subprocess.Popen(command, cwd=ROOT, **streams))
    run = Finished(out)
    assert run.losses[-1] < 0.97 * run.losses[0]
    assert all(tensor.numel() for tensor in run.adapter().values())
