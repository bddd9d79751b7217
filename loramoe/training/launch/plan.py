"""How a run is started: accelerators, processes, machines, and the engine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from loramoe.training.launch.variables import ROOT, fill_values, is_true, project_file, read_flags
from loramoe.utils import UsageError

# Variables that are no flags of train.py, and those whose flag has another name.
MACHINE: Final = ("engine", "deepspeed", "nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port")
FLAG_NAMES: Final = {"pretrained_model": "base_model", "tokenizer_path": "tokenizer_name_or_path"}


class Accelerators(NamedTuple):
    """The accelerators that torch sees: their kind, and whether each has bfloat16."""

    kind: str = "cpu"
    bf16: tuple[bool, ...] = ()


@dataclass
class Plan:
    """How train.py is started: its flags, torchrun's arguments (None: without torchrun), changes of the environment."""

    flags: list[str] = field(default_factory=list)
    torchrun: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_accelerators() -> Accelerators:
    """The accelerators that torch sees: CUDA and ROCm ("cuda"), XPU, MPS, or none ("cpu")."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return Accelerators()
    devices = range(torch.accelerator.device_count())
    if found.type != "cuda":
        return Accelerators(found.type, tuple(found.type == "xpu" for _ in devices))
    # bfloat16 came with compute capability 8.0; every GPU that ROCm supports is above.
    return Accelerators("cuda", tuple(torch.cuda.get_device_capability(device) >= (8, 0) for device in devices))


def make_plan(
    values: Mapping[str, str], flags: list[str], accelerators: Accelerators, environment: Mapping[str, str]
) -> Plan:
    """Decides how a run is started, by the variables of run_loramoe.sh and the user's flags, which win."""
    plan, given = Plan(), read_flags(flags)
    machine = {name: values.get(name, "") for name in MACHINE}
    of_train = {name: value for name, value in values.items() if name not in MACHINE}
    if is_true(given.use_cpu):
        accelerators = Accelerators()
    elif accelerators.kind == "cpu":
        plan.notes += _why_no_accelerator(environment)
    processes = _processes(machine["nproc_per_node"], accelerators, environment, plan)
    nodes = _plan_torchrun(machine, processes, environment, plan)
    if fill_values(of_train, given, environment.keys() & values.keys()):
        plan.environment["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", "1")  # its matrices are small
    if accelerators.kind == "cpu":
        of_train["use_cpu"], plan.environment["DS_ACCELERATOR"] = "true", "cpu"
    fp16 = is_true(given.fp16 or of_train.get("fp16"))
    if fp16 or not of_train.get("bf16"):
        has_bf16 = bool(accelerators.bf16) and all(accelerators.bf16[:processes])
        of_train["bf16"] = "true" if has_bf16 and not fp16 else ""
    if not given.deepspeed and not given.fsdp:
        of_train |= _engine_flags(values, accelerators.kind == "cuda" and nodes * processes > 1, plan)
    if given.deepspeed or of_train.get("deepspeed"):
        # DeepSpeed looks there for ninja, to compile what a run needs.
        plan.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    elif nodes * processes == 1:
        plan.torchrun = None  # one process needs no rendezvous
    # In one word each; an empty value leaves its flag out.
    plan.flags = [*(f"--{FLAG_NAMES.get(name, name)}={value}" for name, value in of_train.items() if value), *flags]
    return plan


def _why_no_accelerator(environment: Mapping[str, str]) -> list[str]:
    """A line for a run on the CPU of a machine where a GPU is expected."""
    named, device = environment.get("CUDA_VISIBLE_DEVICES"), _device_file()
    is_hidden = named is not None and re.match(r"\s*(-|$)", named)
    if is_hidden or (named is None and device is None):
        return []
    seen = f"CUDA_VISIBLE_DEVICES={named} names GPUs" if device is None else f"this machine has a GPU ({device})"
    return [
        f"{seen}, but torch sees none: the CPU is used. Check nvidia-smi (rocm-smi), and that the installed torch is "
        "built for the GPU. CUDA_VISIBLE_DEVICES= (empty) uses the CPU without this line."
    ]


def _device_file() -> str | None:
    return next((str(path) for pattern in ("nvidia[0-9]*", "kfd") for path in Path("/dev").glob(pattern)), None)


def _number(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{name} must be a whole number of at least {least}; got {name}={text!r}. Correct it.")
    return int(text)


def _processes(requested: str, accelerators: Accelerators, environment: Mapping[str, str], plan: Plan) -> int:
    """Processes on this machine: one per device; devices without a process are hidden."""
    count = len(accelerators.bf16)
    processes = _number("nproc_per_node", requested or str(max(1, count)))
    if count and processes > count:
        raise UsageError(f"nproc_per_node={processes}, but torch sees {count} devices. Set nproc_per_node={count}.")
    if processes < count:  # the Trainer would share a lone process among all devices that it sees
        hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"
        variable = "ZE_AFFINITY_MASK" if accelerators.kind == "xpu" else hip
        named = environment.get(variable) or ",".join(map(str, range(count)))
        plan.environment[variable] = ",".join(name.strip() for name in named.split(",")[:processes])
    return processes


def _plan_torchrun(machine: Mapping[str, str], processes: int, environment: Mapping[str, str], plan: Plan) -> int:
    """Sets torchrun's arguments, from variables or else from Slurm's; returns the number of machines."""
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    if tasks and int(tasks[0]) > 1:
        raise UsageError(f"Slurm starts this script {tasks[0]} times on a machine. Set --ntasks-per-node=1.")
    defaults = {"nnodes": "1", "node_rank": "0", "master_addr": "127.0.0.1", "master_port": "29500"}
    if not machine["nnodes"] and "SLURM_NODEID" in environment and environment.get("SLURM_NNODES", "1") != "1":
        # The first machine of a list such as node[03-05,07],other1; jobs that share a machine need a port each.
        hosts = environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
        first = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", hosts).split(",")[0]
        job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
        nodes, rank, port = environment["SLURM_NNODES"], environment["SLURM_NODEID"], str(20_000 + job % 10_000)
        defaults = {"nnodes": nodes, "node_rank": rank, "master_addr": first, "master_port": port}
        plan.notes.append(
            f"Slurm: machine {rank} of {nodes}, which meet at {first}. Each must start this script (srun bash "
            "run_loramoe.sh); nnodes=1 uses this machine alone."
        )
    chosen = {name: machine[name] or default for name, default in defaults.items()}
    count, own = _number("nnodes", chosen["nnodes"]), _number("node_rank", chosen["node_rank"], least=0)
    if own >= count:
        raise UsageError(f"node_rank must be less than nnodes={count}; got node_rank={own}. Count from 0.")
    meeting = ["--standalone", "--local_addr", "localhost"]  # which takes a free port
    if count > 1:
        meeting = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    plan.torchrun = ["--nproc_per_node", str(processes), *meeting]
    return count


def _engine_flags(values: Mapping[str, str], several_gpus: bool, plan: Plan) -> dict[str, str]:
    """Flags of `engine`, or of the file that `deepspeed` names; by default ZeRO-2 on several GPUs, else DDP."""
    engine, deepspeed = values.get("engine", ""), values.get("deepspeed", "auto")
    if engine and deepspeed not in ("", "auto"):
        raise UsageError(f"engine={engine} and deepspeed={deepspeed} exclude each other. Set one of them.")
    if not engine and deepspeed != "auto":
        return {"deepspeed": project_file(deepspeed)}
    if not engine and several_gpus and find_spec("deepspeed") is None:
        note = "DeepSpeed is not installed, so DDP is used instead of ZeRO-2. Run bash scripts/setup_env.sh deepspeed."
        plan.notes.append(note)
        engine = "ddp"
    engine = engine or ("zero2" if several_gpus else "ddp")
    if engine == "fsdp2":
        return {"fsdp": "full_shard auto_wrap", "fsdp_config": project_file("configs/fsdp2.json")}
    file = "ds_config.json" if engine == "zero2" else f"configs/{engine}.json"
    if engine != "ddp" and not (re.fullmatch(r"zero[123](_offload)?", engine) and (ROOT / file).is_file()):
        raise UsageError(
            f"engine must be ddp, zero2, zero3 or fsdp2; got engine={engine}. For another, set deepspeed=FILE."
        )
    return {} if engine == "ddp" else {"deepspeed": project_file(file)}
