"""examples/accelerate_loop.py: the constraint has its share of a step over processes and accumulated micro-batches."""

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
from peft import LoraMoeConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import SftCollator, tokenise_dataset

ROOT = Path(__file__).parents[2]


def loop(tiny_task: Any, out: Path, processes: int, accumulation: int) -> tuple[list[float], dict[str, Tensor]]:
    """The losses that the example prints, and the adapter that it saves."""
    # `accelerate launch --cpu --num_processes 2` starts a single process, unless it has MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launch += [str(ROOT / "examples" / "accelerate_loop.py"), "--accumulation", str(accumulation)]
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
def test_two_processes_equal_one_process_that_accumulates(tiny_task: Any, tmp_path: Path) -> None:
    losses, adapter = loop(tiny_task, tmp_path / "one", processes=1, accumulation=4)
    assert len(losses) == 3
    two_losses, two_adapter = loop(tiny_task, tmp_path / "two", processes=2, accumulation=2)
    assert two_losses == pytest.approx(losses, abs=1.1e-4)  # four decimals are printed
    assert adapter.keys() == two_adapter.keys()
    for name, weight in adapter.items():
        torch.testing.assert_close(two_adapter[name], weight, rtol=1e-4, atol=1e-5)
    assert losses[0] == pytest.approx(first_loss(tiny_task, tmp_path / "one"), abs=6e-5)


def first_loss(tiny_task: Any, adapter: Path) -> float:
    """The loss of the first step without accelerate: micro-batches count by their share of the step's label tokens."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "lora_nums", "blc_weight", "blc_alpha", "lora_dropout", "task_type")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    model = get_peft_model(base, LoraMoeConfig(**{name: config[name] for name in names})).train()
    samples, _ = tokenise_dataset(
        tiny_task.train_dir, AutoTokenizer.from_pretrained(tiny_task.base), max_seq_length=128
    )
    samples = samples.shuffle(seed=0, keep_in_memory=True)
    batches = [SftCollator(0)([samples[i + k] for k in range(3)]) for i in range(0, 12, 3)]
    items = torch.stack([(batch["labels"][:, 1:] != -100).sum() for batch in batches])
    return float(torch.stack([model(**batch).loss for batch in batches]) @ (items / items.sum()))
