"""How a run is started on a machine with certain accelerators, and on several machines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loramoe.training.launch import plan as module
from loramoe.training.launch.plan import Accelerators, Plan, find_accelerators, make_plan
from loramoe.utils import UsageError

ONE, TWO, EIGHT = (Accelerators("cuda", (True,) * count) for count in (1, 2, 8))
ZERO2 = {"--deepspeed": "ds_config.json"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with DeepSpeed and without device files; the tests stand in the repository."""
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_device_file", lambda: None)
    monkeypatch.chdir(Path(__file__).parents[3])


def plan(accelerators: Accelerators, *flags: str, environment: dict[str, str] | None = None, **values: object) -> Plan:
    return make_plan({name: str(value) for name, value in values.items()}, list(flags), accelerators, environment or {})


def flags(made: Plan) -> dict[str, str]:
    return dict(word.split("=", 1) for word in made.flags)


def test_the_cpu_runs_one_process_without_torchrun():
    made = plan(Accelerators())
    assert (made.torchrun, flags(made), made.notes) == (None, {"--use_cpu": "true"}, [])
    assert made.environment["DS_ACCELERATOR"] == "cpu"


def test_one_gpu_needs_neither_torchrun_nor_deepspeed():
    made = plan(ONE)
    assert (made.torchrun, flags(made), made.environment) == (None, {"--bf16": "true"}, {})


def test_several_gpus_run_a_process_each_with_zero_2_on_a_free_port():
    made = plan(TWO)
    assert made.torchrun == ["--nproc_per_node", "2", "--standalone", "--local_addr", "localhost"]
    assert flags(made) == {"--bf16": "true", **ZERO2}


@pytest.mark.parametrize(("kind", "count"), [("mps", 1), ("xpu", 2)])
def test_other_accelerators_are_used(kind: str, count: int):
    made = plan(Accelerators(kind, (False,) * count))
    assert flags(made) == {}
    assert (made.torchrun is not None) == (count > 1)


class TestEngine:
    """One variable names the engine."""

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ({"engine": "ddp"}, {}),
            ({"deepspeed": ""}, {}),
            ({"engine": "zero2"}, ZERO2),
            ({"engine": "zero3"}, {"--deepspeed": "configs/zero3.json"}),
            ({"engine": "zero2_offload"}, {"--deepspeed": "configs/zero2_offload.json"}),
            ({"deepspeed": "mine.json"}, {"--deepspeed": "mine.json"}),
            ({"engine": "zero3", "deepspeed": ""}, {"--deepspeed": "configs/zero3.json"}),
            ({"engine": "fsdp2"}, {"--fsdp": "full_shard auto_wrap", "--fsdp_config": "configs/fsdp2.json"}),
        ],
    )
    def test_it_becomes_flags(self, values: dict[str, str], expected: dict[str, str]):
        assert flags(plan(TWO, **values)) == {"--bf16": "true", **expected}

    def test_deepspeed_on_one_device_starts_torchrun(self):
        assert plan(Accelerators(), engine="zero2").torchrun is not None
        assert plan(ONE, "--deepspeed", "mine.json").torchrun is not None

    @pytest.mark.parametrize("flag", ["--deepspeed", "--fsdp"])
    def test_a_flag_wins(self, flag: str):
        assert plan(TWO, flag, "mine", engine="zero3").flags == ["--bf16=true", flag, "mine"]

    def test_without_deepspeed_ddp_is_used_and_named(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        made = plan(TWO)
        assert flags(made) == {"--bf16": "true"}
        assert "setup_env.sh deepspeed" in made.notes[0]

    @pytest.mark.parametrize(
        "values", [{"engine": "zero4"}, {"engine": "../x"}, {"engine": "ddp", "deepspeed": "x.json"}]
    )
    def test_an_unknown_or_a_second_one_is_refused(self, values: dict[str, str]):
        with pytest.raises(UsageError, match=f"engine.*{values['engine']}"):
            plan(TWO, **values)


class TestDevices:
    """A process sees one device; bf16 needs a device that has it."""

    @pytest.mark.parametrize(
        ("count", "environment", "visible"),
        [
            (1, {}, {"CUDA_VISIBLE_DEVICES": "0"}),
            (2, {"CUDA_VISIBLE_DEVICES": " 3, 2,1,0"}, {"CUDA_VISIBLE_DEVICES": "3,2"}),
            (1, {"CUDA_VISIBLE_DEVICES": "GPU-4f2a,GPU-9c,GPU-1,GPU-2"}, {"CUDA_VISIBLE_DEVICES": "GPU-4f2a"}),
            (1, {"HIP_VISIBLE_DEVICES": "3,2,1,0"}, {"HIP_VISIBLE_DEVICES": "3"}),
            (4, {}, {}),
        ],
    )
    def test_devices_without_a_process_are_hidden(self, count: int, environment: dict, visible: dict):
        made = plan(Accelerators("cuda", (True,) * 4), environment=environment, nproc_per_node=count, engine="ddp")
        assert made.environment == visible

    @pytest.mark.parametrize(
        ("wish", "message"), [("3", "torch sees 2 devices"), ("0", "at least 1"), ("two", "'two'")]
    )
    def test_a_number_of_processes_that_cannot_be_is_refused(self, wish: str, message: str):
        with pytest.raises(UsageError, match=f"nproc_per_node.*{message}"):
            plan(TWO, nproc_per_node=wish)

    def test_the_cpu_may_run_several(self):
        assert plan(Accelerators(), nproc_per_node=2).torchrun[:2] == ["--nproc_per_node", "2"]

    def test_bf16_needs_all_devices_that_are_used(self):
        mixed = Accelerators("cuda", (True, False))
        assert "--bf16" not in flags(plan(mixed))
        assert flags(plan(mixed, nproc_per_node=1))["--bf16"] == "true"

    def test_the_users_precision_wins(self):
        assert flags(plan(ONE, bf16="false"))["--bf16"] == "false"
        assert flags(plan(ONE, fp16="true")) == {"--fp16": "true"}
        assert plan(ONE, "--fp16", "true", fp16="false").flags == ["--fp16=false", "--fp16", "true"]
        assert plan(ONE, "--fp16", "false").flags == ["--bf16=true", "--fp16", "false"]
        assert plan(ONE, "--bf16=false").flags[-1] == "--bf16=false"

    def test_use_cpu_wins_over_the_gpus(self):
        assert plan(TWO, "--use_cpu", "true").flags == ["--use_cpu=true", "--use_cpu", "true"]


class TestWhereAGpuIsExpected:
    """The CPU is never used in silence."""

    @pytest.mark.parametrize("named", ["0,1", "GPU-4f2a"])
    def test_by_the_environment(self, named: str):
        (note,) = plan(Accelerators(), environment={"CUDA_VISIBLE_DEVICES": named}).notes
        assert f"CUDA_VISIBLE_DEVICES={named} names GPUs" in note

    def test_by_its_device_file(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_device_file", lambda: "/dev/nvidia0")
        (note,) = plan(Accelerators()).notes
        assert "/dev/nvidia0" in note
        assert plan(Accelerators(), "--use_cpu").notes == []

    @pytest.mark.parametrize("hidden", ["", "-1", " -1,0"])
    def test_hidden_gpus_are_not_expected(self, hidden: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(module, "_device_file", lambda: "/dev/nvidia0")
        assert plan(Accelerators(), environment={"CUDA_VISIBLE_DEVICES": hidden}).notes == []


SLURM = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "70012", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}


class TestMachines:
    """Several machines meet at the first one."""

    def nodes(self, made: Plan) -> list[str]:
        words = made.torchrun or []
        return [words[words.index(f"--{name}") + 1] for name in ("nnodes", "node_rank", "master_addr", "master_port")]

    def test_by_variables(self):
        made = plan(EIGHT, nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=1234)
        assert self.nodes(made) == ["2", "1", "10.0.0.1", "1234"]
        assert self.nodes(plan(ONE, nnodes=2)) == ["2", "0", "127.0.0.1", "29500"]
        assert flags(plan(ONE, nnodes=2))["--deepspeed"] == "ds_config.json"

    @pytest.mark.parametrize(
        ("hosts", "first"),
        [
            ("node[03-05,07],other1", "node03"),
            ("node[1,3]", "node1"),
            ("a,b[1-2]", "a"),
            ("rack[2-3]n[01-04]-ib", "rack2n01-ib"),
            ("gpu-7", "gpu-7"),
        ],
    )
    def test_by_slurm(self, hosts: str, first: str):
        made = plan(EIGHT, environment={**SLURM, "SLURM_JOB_NODELIST": hosts})
        assert self.nodes(made) == ["2", "1", first, "20012"]
        assert "machine 1 of 2" in made.notes[0]

    def test_variables_win_over_slurm(self):
        environment = {**SLURM, "SLURM_JOB_NODELIST": "a,b"}
        assert self.nodes(plan(EIGHT, environment=environment, master_port=1234))[-1] == "1234"
        alone = plan(ONE, environment=environment, nnodes=1)
        assert (alone.torchrun, alone.notes) == (None, [])

    def test_slurm_must_start_the_script_once_on_a_machine(self):
        with pytest.raises(UsageError, match=r"8 times.*--ntasks-per-node=1"):
            plan(EIGHT, environment={**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x2)"})

    def test_a_rank_beyond_the_last_is_refused(self):
        with pytest.raises(UsageError, match="node_rank=2"):
            plan(ONE, nnodes=2, node_rank=2)


def test_torch_is_asked_for_accelerators_and_bfloat16(monkeypatch: pytest.MonkeyPatch):
    capabilities = [(7, 5), (8, 0), (12, 0)]
    kinds = iter([None, torch.device("mps"), torch.device("cuda")])
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: next(kinds))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    assert find_accelerators() == Accelerators()
    assert find_accelerators() == Accelerators("mps", (False,) * 3)
    assert find_accelerators() == Accelerators("cuda", (False, True, True))
