"""A loop of one's own with accelerate: the constraint's share is right over processes and accumulated micro-batches.

What is tested is the loop that users copy, examples/accelerate_loop.py, run as they would.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import SftCollator, tokenise_dataset
from tests.plain_loop import LEARNING_RATE, make_model, make_rows, weights

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "accelerate_loop.py"


def loop(tiny_task: Any, out: Path, processes: int, accumulation: int) -> tuple[list[float], dict[str, Tensor]]:
    """The losses that the example prints, and the adapter that it saves."""
    # `accelerate launch --cpu --num_processes 2` would start a single process: it has several on CPUs by MPI alone.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch += [str(EXAMPLE), "--accumulation", str(accumulation)]
    flags = {"base": tiny_task.base, "rows": tiny_task.train_dir, "output": out, "steps": 3, "batch_size": 3}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, *words], env=environment, capture_output=True, text=True, check=False, cwd=out.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)", done.stdout, re.MULTILINE)]
    return losses, load_file(out / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("own_dataset_cache")
def test_two_processes_are_one_process_that_accumulates(tiny_task: Any, tmp_path: Path) -> None:
    losses, adapter = loop(tiny_task, tmp_path / "one", processes=1, accumulation=4)
    assert len(losses) == 3
    two_losses, two_adapter = loop(tiny_task, tmp_path / "two", processes=2, accumulation=2)
    assert two_losses == pytest.approx(losses, abs=1.1e-4)  # four decimals are printed
    assert adapter.keys() == two_adapter.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(two_adapter[name], weight, rtol=1e-4, atol=1e-5)
    plain_losses, plain = plain_steps(tiny_task, json.loads((tmp_path / "one/adapter_config.json").read_text()))
    assert losses == pytest.approx(plain_losses, abs=6e-5)
    assert adapter.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(adapter[name], weight, rtol=1e-4, atol=1e-5)


def plain_steps(tiny_task: Any, config: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """The same steps without accelerate: the loss of a micro-batch counts by its share of the step's label tokens."""
    from peft import LoraMoeConfig, get_peft_model, get_peft_model_state_dict

    names = ("r", "lora_alpha", "lora_nums", "blc_weight", "blc_alpha", "lora_dropout", "task_type")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    model = get_peft_model(base, LoraMoeConfig(**{name: config[name] for name in names})).train()
    rows, _ = tokenise_dataset(tiny_task.train_dir, AutoTokenizer.from_pretrained(tiny_task.base), max_seq_length=128)
    rows = rows.shuffle(seed=0, keep_in_memory=True)
    collate = SftCollator(0)
    micro_batches = [collate([rows[i + k] for k in range(3)]) for i in range(0, 36, 3)]
    optimizer = torch.optim.AdamW(weights(model).values(), lr=2e-3)
    losses = []
    for start in range(0, 12, 4):
        step = micro_batches[start : start + 4]
        counts = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in step])
        loss = torch.stack([model(**batch).loss for batch in step]) @ (counts / counts.sum())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, get_peft_model_state_dict(model)


def test_accumulate_gives_the_mean_of_the_micro_batches() -> None:
    """The short way, `accelerator.accumulate`: every micro-batch counts alike, its loss and its constraint."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of trainers in other tests of this process
    GradientState._reset_state()
    model, accelerator = make_model().train(), Accelerator(cpu=True, gradient_accumulation_steps=4)
    collate, rows = SftCollator(0), make_rows()
    batches = [collate(rows[i : i + 2]) for i in range(0, 8, 2)]
    torch.stack([model(**batch).loss for batch in batches]).mean().backward()
    expected = {name: p.grad for name, p in weights(model).items()}
    model.zero_grad()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(weights(model).values(), lr=LEARNING_RATE))
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                got = {name: p.grad.clone() for name, p in weights(model).items()}
            optimizer.step()
            optimizer.zero_grad()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-7)
