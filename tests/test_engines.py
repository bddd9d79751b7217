"""The optional engines, each run for a few steps on a CPU: DeepSpeed in a plain Trainer, trackers.

DeepSpeed in `train.py` is tested in tests/distributed/, bitsandbytes in tests/ecosystem/.

They are no part of the first run's environment: where a package is absent, its test is skipped.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ROOT / "data" / "tiny_llama"
TRAIN = ROOT / "data" / "tiny_data" / "train" / "train.json"

SHOWN = ("blc", "cov", "share/type1/group0", "routing/cov/early", "routing/blc/late", "routing/cov/down_proj")
SHOWN += ("routing/share/type1/group0/middle",)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TINY / "model.safetensors").is_file(), reason="data/tiny_llama is not there"),
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of 20 rows of the embedded data."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.json").write_text(json.dumps(json.loads(TRAIN.read_text())[:20]))
    return tmp_path / "rows"


@pytest.fixture
def train(rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """Two steps of `train.py` on the embedded model: `train(flag=value, …)`; returns the output folder."""

    def start(**changes: object) -> Path:
        out = tmp_path / "out"
        flags = {"model_name_or_path": TINY, "dataset_dir": rows, "output_dir": out, "max_steps": 2, "logging_steps": 1}
        flags |= {"per_device_train_batch_size": 4, "max_seq_length": 128, "use_cpu": "true", **changes}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        run([sys.executable, str(ROOT / "train.py"), *words], tmp_path)
        return out

    return start


def run(command: list[str], folder: Path, **variables: str) -> None:
    """Runs a command in a folder, on the CPU alone; its output is in the failure if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def logged(out: Path) -> list[dict[str, float]]:
    """What each step of the training logged."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "blc" in entry]


def approx(out: Path, name: str) -> object:
    """What a tracker should show of one figure; shares of a task type are there where the batch had rows of it."""
    values = [entry[name] for entry in logged(out) if name in entry]
    assert values, f"{name} was not logged"
    return pytest.approx(values)


ZERO_WORKER = """
    import json, sys
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
    from loramoe import LoraMoeConfig
    from loramoe.training.distributed import exit_process

    stage, base = int(sys.argv[1]), sys.argv[2]
    # Every weight is sharded: DeepSpeed would keep those of so small a model whole.
    zero = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    zero |= {name: "auto" for name in ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_clipping")}
    if stage:
        import deepspeed
        deepspeed.init_distributed(dist_backend="gloo")
    args = TrainingArguments(
        "out", use_cpu=True, max_steps=3, per_device_train_batch_size=2, logging_steps=1, learning_rate=1e-2,
        lr_scheduler_type="constant", deepspeed=zero if stage else None, report_to=[], save_strategy="no",
        remove_unused_columns=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraMoeConfig(r=4, lora_nums=4, blc_weight=0.1, blc_alpha=0.1))
    ids = torch.randint(5, 900, (12, 10), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row, "task_types": torch.tensor(i % 2)} for i, row in enumerate(ids)]
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    if args.process_index == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        json.dump(losses, open(f"losses{stage}.json", "w"))
    exit_process()
"""


def test_sharded_weights_give_the_losses_of_whole_ones(tmp_path: Path, zero: None):
    """ZeRO-3, in which a weight is there only around its use, against DDP; two processes each."""
    (tmp_path / "worker.py").write_text(textwrap.dedent(ZERO_WORKER))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside this Python
    for stage in (0, 3):
        command = [*launcher, "worker.py", str(stage), str(TINY)]
        run(command, tmp_path, PATH=path, PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu")
    whole, sharded = (json.loads((tmp_path / f"losses{stage}.json").read_text()) for stage in (0, 3))
    assert len(whole) == 3
    assert whole[2] != pytest.approx(whole[0], rel=1e-2), "nothing was learnt"
    assert sharded == pytest.approx(whole, rel=1e-5)


def test_wandb_offline_leaves_a_run(train, tmp_path: Path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    train(report_to="wandb")
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    written = record.read_bytes()
    for name in SHOWN:
        assert f"train/{name}".encode() in written
        assert f"eval/{name}".encode() in written


def test_tensorboard_shows_the_constraint(train):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = train(report_to="tensorboard")
    (folder,) = (out / "runs").iterdir()
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    for name in SHOWN:
        assert [event.value for event in events.Scalars(f"train/{name}")] == approx(out, name)
        assert events.Scalars(f"eval/{name}")


def test_trackio_has_the_figures(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    out = train(report_to="trackio", project="experts")
    with sqlite3.connect(tmp_path / "trackio" / "experts.db") as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics")]
    for name in SHOWN:
        assert [row[f"train/{name}"] for row in rows if f"train/{name}" in row] == approx(out, name)
        assert [row for row in rows if f"eval/{name}" in row]
