"""How a run is started on a machine with certain accelerators, and on several machines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loramoe.training.launch import plan as module
from loramoe.training.launch.plan import Accelerators, Plan, find_accelerators, make_plan
from loramoe.utils import UsageError

CPU, ONE, TWO, EIGHT = Accelerators(), *(Accelerators("cuda", (True,) * count) for count in (1, 2, 8))
ZERO2 = {"--deepspeed": "ds_config.json"}
SLURM = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "70012", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with DeepSpeed and without device files; the tests stand in the repository."""
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_device_file", lambda: None)
    monkeypatch.chdir(Path(__file__).parents[3])


def plan(accelerators: Accelerators, *flags: str, environment: dict[str, str] | None = None, **values: object) -> Plan:
    return make_plan({name: str(value) for name, value in values.items()}, list(flags), accelerators, environment or {})


def flags(made: Plan) -> dict[str, str]:
    return dict(word.split("=", 1) for word in made.flags)


def nodes(made: Plan) -> list[str]:
    words = made.torchrun or []
    return [words[words.index(f"--{name}") + 1] for name in ("nnodes", "node_rank", "master_addr", "master_port")]


def test_one_process_needs_neither_torchrun_nor_deepspeed():
    made = plan(CPU)
    assert (made.torchrun, flags(made), made.notes) == (None, {"--use_cpu": "true"}, [])
    assert made.environment["DS_ACCELERATOR"] == "cpu"
    made = plan(ONE)
    assert (made.torchrun, flags(made), made.environment) == (None, {"--bf16": "true"}, {})
    assert plan(CPU, nproc_per_node=2).torchrun[:2] == ["--nproc_per_node", "2"]
    assert plan(TWO, "--use_cpu", "true").flags == ["--use_cpu=true", "--use_cpu", "true"]


def test_several_gpus_run_a_process_each_with_zero_2_on_a_free_port(monkeypatch: pytest.MonkeyPatch):
    made = plan(TWO)
    assert made.torchrun == ["--nproc_per_node", "2", "--standalone", "--local_addr", "localhost"]
    assert flags(made) == {"--bf16": "true", **ZERO2}
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    made = plan(TWO)
    assert flags(made) == {"--bf16": "true"}
    assert "setup_env.sh deepspeed" in made.notes[0]


@pytest.mark.parametrize(("kind", "count"), [("mps", 1), ("xpu", 2)])
def test_other_accelerators_are_used(kind: str, count: int):
    made = plan(Accelerators(kind, (False,) * count))
    assert flags(made) == {}
    assert (made.torchrun is not None) == (count > 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"engine": "ddp"}, {}),
        ({"deepspeed": ""}, {}),
        ({"deepspeed": "mine.json"}, {"--deepspeed": "mine.json"}),
        ({"engine": "zero3", "deepspeed": ""}, {"--deepspeed": "configs/zero3.json"}),
        ({"engine": "fsdp2"}, {"--fsdp": "full_shard auto_wrap", "--fsdp_config": "configs/fsdp2.json"}),
    ],
)
def test_one_variable_names_the_engine(values: dict[str, str], expected: dict[str, str]):
    assert flags(plan(TWO, **values)) == {"--bf16": "true", **expected}


def test_a_flag_names_the_engine():
    assert plan(TWO, "--fsdp", "mine", engine="zero3").flags == ["--bf16=true", "--fsdp", "mine"]
    assert plan(ONE, "--deepspeed", "mine.json").torchrun is not None  # DeepSpeed needs its variables


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "zero4"}, "engine=zero4"),
        ({"engine": "../x"}, r"engine=\.\./x"),
        ({"engine": "ddp", "deepspeed": "x.json"}, "engine=ddp and deepspeed=x.json"),
        ({"nproc_per_node": 3}, "nproc_per_node=3, but torch sees 2"),
        ({"nproc_per_node": "many"}, "nproc_per_node='many'"),
        ({"nnodes": 2, "node_rank": 2}, "node_rank=2"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        plan(TWO, **values)


def test_devices_without_a_process_are_hidden():
    assert plan(EIGHT, nproc_per_node=1).environment["CUDA_VISIBLE_DEVICES"] == "0"
    made = plan(TWO, nproc_per_node=1, environment={"HIP_VISIBLE_DEVICES": "4, 5"})
    assert made.environment["HIP_VISIBLE_DEVICES"] == "4"


def test_bf16_where_all_used_devices_have_it_unless_the_user_says():
    mixed = Accelerators("cuda", (True, False))
    assert "--bf16" not in flags(plan(mixed))
    assert flags(plan(mixed, nproc_per_node=1))["--bf16"] == "true"
    assert flags(plan(ONE, bf16="false"))["--bf16"] == "false"
    assert flags(plan(ONE, fp16="true")) == {"--fp16": "true"}
    assert plan(ONE, "--fp16", "true", fp16="false").flags == ["--fp16=false", "--fp16", "true"]


@pytest.mark.parametrize(
    ("named", "file", "expected"),
    [
        ("0,1", None, "CUDA_VISIBLE_DEVICES=0,1 names GPUs"),
        (None, "/dev/nvidia0", "/dev/nvidia0"),
        ("", "/dev/nvidia0", None),
        (" -1,0", "/dev/nvidia0", None),
    ],
)
def test_the_cpu_is_never_used_in_silence(named, file, expected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_device_file", lambda: file)
    environment = {} if named is None else {"CUDA_VISIBLE_DEVICES": named}
    notes = plan(CPU, environment=environment).notes
    assert notes == [] if expected is None else expected in notes[0]
    assert plan(CPU, "--use_cpu", environment=environment).notes == []


def test_several_machines_by_variables():
    made = plan(EIGHT, nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=1234)
    assert nodes(made) == ["2", "1", "10.0.0.1", "1234"]
    assert nodes(plan(ONE, nnodes=2)) == ["2", "0", "127.0.0.1", "29500"]
    assert flags(plan(ONE, nnodes=2))["--deepspeed"] == "ds_config.json"


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node[03-05,07],other1", "node03"), ("a,b[1-2]", "a"), ("rack[2-3]n[01-04]-ib", "rack2n01-ib")],
)
def test_several_machines_by_slurm(hosts: str, first: str):
    environment = {**SLURM, "SLURM_JOB_NODELIST": hosts}
    made = plan(EIGHT, environment=environment)
    assert nodes(made) == ["2", "1", first, "20012"]
    assert "machine 1 of 2" in made.notes[0]
    assert nodes(plan(EIGHT, environment=environment, master_port=1234))[-1] == "1234"
    alone = plan(ONE, environment=environment, nnodes=1)
    assert (alone.torchrun, alone.notes) == (None, [])
    with pytest.raises(UsageError, match=r"8 times.*--ntasks-per-node=1"):
        plan(EIGHT, environment={**environment, "SLURM_STEP_TASKS_PER_NODE": "8(x2)"})


def test_torch_is_asked_for_accelerators_and_bfloat16(monkeypatch: pytest.MonkeyPatch):
    capabilities = [(7, 5), (8, 0), (12, 0)]
    kinds = iter([None, torch.device("mps"), torch.device("cuda")])
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: next(kinds))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert find_accelerators() == Accelerators()
    assert find_accelerators() == Accelerators("mps", (False,) * 3)
    assert find_accelerators() == Accelerators("cuda", (False, True, True))
