"""Engines, agreement and the end of processes, as far as a machine without a GPU can see them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from loramoe.training import distributed as module
from loramoe.training import parse
from loramoe.training.distributed import decide_on_rank_0, start_engine, whole_adapter
from loramoe.utils import UsageError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("zero*.json"))


def test_fsdp_without_a_gpu_is_refused(tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match=r"FSDP needs GPUs.*fsdp='full_shard'.*--deepspeed configs/zero3.json"):
        parse(tiny_task.flags(tmp_path, fsdp="full_shard"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match=r"FSDP needs GPUs.*ACCELERATE_USE_FSDP"):
        parse(tiny_task.flags(tmp_path))


@pytest.mark.parametrize(
    ("args", "run", "message"),
    [
        ({"fsdp_config": {"version": 1}}, {}, "FSDP must have version 2.*got 1"),
        ({"fsdp": None}, {}, "FSDP must have version 2.*got 1.*accelerate launch"),
        ({}, {"generates": True}, r"recall_file.*--deepspeed configs/zero3.json"),
        ({}, {"load_in_kbits": 4}, "FSDP cannot shard.*load_in_kbits=4"),
        ({}, {}, None),
    ],
)
def test_what_fsdp_cannot_do_is_refused(
    args: dict[str, object], run: dict[str, object], message: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    made = SimpleNamespace(**{"fsdp": "full_shard", "fsdp_config": None, "use_cpu": False, "deepspeed": None, **args})
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        start_engine(made, **run)


def test_zero_3_cannot_shard_4_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UsageError, match=r"ZeRO-3 cannot shard weights of 4 bits"):
        start_engine(SimpleNamespace(fsdp=None, deepspeed="configs/zero3.json"), load_in_kbits=4)


def test_what_is_saved_is_the_adapter_alone(adapted: Callable[..., torch.nn.Module]):
    model = adapted(modules_to_save=["lm_head"])
    state = whole_adapter(model)
    assert set(state) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in state.items():
        assert torch.equal(tensor, model.get_parameter(name))
        assert tensor.data_ptr() != model.get_parameter(name).data_ptr()
    assert whole_adapter(model, keep=False) == {}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_takes_what_the_flags_say(config: Path):
    values = json.loads(config.read_text())
    assert values["zero_optimization"]["stage"] == int(config.stem[len("zero")])
    assert ("offload_optimizer" in values["zero_optimization"]) == config.stem.endswith("offload")
    filled = ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size")
    assert all(values[name] == "auto" for name in filled)
    assert (ROOT / "ds_config.json").read_text() == (ROOT / "configs/zero2.json").read_text()


def test_the_trainer_reads_the_configuration_of_fsdp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FSDP_CPU_RAM_EFFICIENT_LOADING", raising=False)
    config = str(ROOT / "configs/fsdp2.json")
    args = TrainingArguments(tmp_path, use_cpu=True, fsdp="full_shard auto_wrap", fsdp_config=config)
    plugin = args._process_fsdp_args()
    assert (plugin["fsdp_version"], plugin["reshard_after_forward"]) == (2, True)
    assert not plugin["cpu_ram_efficient_loading"], "ranks other than 0 would get no adapter"


@pytest.mark.parametrize("refusal", [None, FileExistsError("a finished run")])
def test_rank_0_decides_for_all(refusal: Exception | None, monkeypatch: pytest.MonkeyPatch):
    assert decide_on_rank_0(lambda: 3) == 3
    monkeypatch.setattr(module, "PartialState", lambda: SimpleNamespace(process_index=1))
    monkeypatch.setattr(module, "broadcast_object_list", lambda own: ["checkpoint-3", refusal])
    with pytest.raises(FileExistsError, match="a finished run") if refusal else nullcontext():
        assert decide_on_rank_0(lambda: pytest.fail("rank 1 decides nothing")) == "checkpoint-3"


WORKER = """
    import atexit, sys, threading, time
    import torch, torch.distributed as dist
    from accelerate import PartialState
    from loramoe.training.distributed import exit_process

    PartialState(cpu=True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))  # holds the group after its end
    model(torch.ones(1, 2)).sum().backward()
    rank = dist.get_rank()
    folder = sys.argv[1]
    atexit.register(lambda: open(f"{folder}/atexit{rank}", "w").close())
    threading.Thread(target=lambda: (time.sleep(0.1), open(f"{folder}/thread{rank}", "w").close())).start()
    for _ in range(3000):
        dist.all_reduce(torch.ones(100), async_op=True)  # tensors that gloo's threads will be the last to hold
    PartialState().destroy_process_group()
    sys.stdout.write(f"rank {rank} is done")
    exit_process()
"""


@pytest.mark.slow
def test_processes_end_well_while_gloo_is_at_work(tmp_path: Path):
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "worker.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    streams = {"capture_output": True, "text": True}
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment, check=False, **streams)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        assert f"rank {rank} is done" in done.stdout
        assert (tmp_path / f"atexit{rank}").is_file()
        assert (tmp_path / f"thread{rank}").is_file()
