"""What the engines ask of a run, as far as one process without a GPU can see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file

from loramoe.training.arguments import parse
from loramoe.training.engines import check_engine, start_engine, whole_adapter
from loramoe.training.errors import UsageError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.json"))


def arguments(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"fsdp": None, "use_cpu": True, "deepspeed": None, "do_train": True, **changes})


def test_a_run_without_an_engine_asks_for_nothing():
    check_engine(arguments())
    start_engine(arguments(), asks=True)


def test_fsdp_without_a_gpu_is_refused(tiny_task, tmp_path: Path):
    with pytest.raises(ValueError, match=r"FSDP needs GPUs.*asked for by fsdp='full_shard'.*Set --deepspeed"):
        parse(tiny_task.flags(tmp_path, fsdp="full_shard"))


def test_fsdp_of_the_launcher_is_refused_too(tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP needs GPUs.*asked for by ACCELERATE_USE_FSDP"):
        parse(tiny_task.flags(tmp_path))


def test_with_a_gpu_fsdp_is_not_refused_but_for_recall(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = arguments(fsdp="full_shard", use_cpu=False)
    check_engine(args)
    start_engine(args)
    with pytest.raises(UsageError, match=r"recall_file has the model generate.*Leave --recall_file out"):
        start_engine(args, asks=True)


def test_evaluation_alone_needs_no_zero_2():
    with pytest.raises(UsageError, match=r"nothing for ZeRO-1 and ZeRO-2 to shard; got deepspeed='ds_config.json'"):
        start_engine(arguments(deepspeed="ds_config.json", do_train=False))


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
    stage = int(config.stem[len("zero")])
    assert values["zero_optimization"]["stage"] == stage
    assert ("offload_optimizer" in values["zero_optimization"]) == config.stem.endswith("offload")
    filled = ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size")
    assert all(values[name] == "auto" for name in filled)


def test_the_default_is_zero_2():
    assert (ROOT / "ds_config.json").read_text() == (ROOT / "configs/zero2.json").read_text()


def test_accelerate_reads_the_configuration_of_fsdp():
    config = load_config_from_file(str(ROOT / "configs/fsdp2.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
