"""run_loramoe.sh as a user starts it: on the embedded model, from anywhere, with its variables, and twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = (ROOT / "run_loramoe.sh").read_text()
TINY = ROOT / "data" / "tiny_llama" / "model.safetensors"


def launch(folder: Path, *flags: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Starts the script in a folder that is not the repository, and without standard input."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {
        "HF_DATASETS_CACHE": str(folder / "cache"),
        **{name: str(value) for name, value in variables.items()},
    }
    command = ["bash", str(ROOT / "run_loramoe.sh"), *flags]
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=folder, env=environment, timeout=500, check=False, **streams)


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_file(), reason="data/tiny_llama is not there; tools/tiny_world/pretrain.py makes it")
def test_it_trains_by_variables_and_flags_and_never_overwrites(tmp_path: Path):
    short = {"max_steps": 2, "save_steps": 2, "eval_steps": 2, "lora_rank": 2, "output_dir": "out"}
    done = launch(tmp_path, "--lora_nums", "4", **short)
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((tmp_path / "out" / "sft_lora_model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_nums"], config["peft_type"]) == (2, 4, "LORAMOE")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["before"]["recall"] >= 0.95
    assert list(tmp_path.glob("out/runs/*/events.out.tfevents.*"))
    assert "adapter   out/sft_lora_model" in done.stdout
    again = launch(tmp_path, "--lora_nums", "4", **short)
    assert again.returncode == 1
    assert "holds a finished run" in again.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_mistake_is_one_line(tmp_path: Path):
    done = launch(tmp_path, lora_num=6)
    assert done.returncode == 1
    assert "lora_nums" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "output").exists()


@pytest.fixture
def pairs(tmp_path: Path):
    """What the script passes to the launcher, in place of which a shell script stands: `pairs(*flags, **variables)`."""
    python = tmp_path / "python"
    write_command(python, 'case $1 in */check_env.py) exit 0 ;; *) printf "%s\\n" "$@" ;; esac\n')

    def start(*flags: str, script: str = SCRIPT, **variables: object) -> dict[str, str]:
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / "setup_env.sh", tmp_path / "scripts")
        (tmp_path / "run_loramoe.sh").write_text(script)
        environment = {**os.environ, "PYTHON": str(python), **{name: str(value) for name, value in variables.items()}}
        command = ["bash", str(tmp_path / "run_loramoe.sh"), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        words = done.stdout.splitlines()
        assert words[:2] == ["-m", "loramoe.training.launch"]
        assert words[-1 - len(flags) :] == [str(tmp_path / "train.py"), *flags]
        return dict(word.split("=", 1) for word in words[2 : -1 - len(flags)])

    return start


def test_every_variable_is_passed_and_can_be_set(pairs):
    assert pairs()["learning_rate"] == "2e-4"
    assert pairs()["deepspeed"] == "auto"
    names = pairs().keys() - {"tiny_llama"}
    assert len(names) > 60
    set_all = pairs("--seed", "1 2", **dict.fromkeys(names, "mine = yours"))
    fixed = {name for name in names if set_all[name] != "mine = yours"}
    assert fixed == set(re.findall(r"(\w+)=", re.search(r"^VALUES=\((.*)\)$", SCRIPT, re.MULTILINE)[1]))
    assert pairs(deepspeed="", learning_rate="")["deepspeed"] == ""


def test_an_edited_or_added_line_is_passed(pairs):
    edited = SCRIPT.replace("learning_rate=${learning_rate:-2e-4}", "learning_rate=1e-5\nmax_grad_norm=0.5")
    assert edited != SCRIPT
    made = pairs(script=edited)
    assert (made["learning_rate"], made["max_grad_norm"]) == ("1e-5", "0.5")


def test_it_is_short_and_every_variable_is_explained():
    assert len(SCRIPT.splitlines()) <= 90
    silent = [line for line in SCRIPT.splitlines() if re.match(r"\w+=\$\{", line) and " # " not in line]
    assert silent == []


@pytest.mark.parametrize(
    ("gpus", "variables", "wants"),
    [
        (2, {}, True),
        (1, {}, False),
        (2, {"engine": "ddp"}, False),
        (2, {"deepspeed": ""}, False),
        (2, {"CUDA_VISIBLE_DEVICES": "1"}, False),
        (0, {"engine": "zero3"}, True),
    ],
)
def test_deepspeed_is_installed_where_a_run_needs_it(tmp_path: Path, gpus: int, variables: dict[str, str], wants: bool):
    write_command(tmp_path / "nvidia-smi", "".join(f"echo 'GPU {index}: a GPU'\n" for index in range(gpus)))
    script = f"source {ROOT / 'scripts' / 'setup_env.sh'}; wants_deepspeed"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    assert (subprocess.run(["bash", "-c", script], env=environment, check=False).returncode == 0) is wants


def test_the_environment_is_made_with_a_python_that_is_supported(tmp_path: Path):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")

    def setup(command: str, **versions: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of scripts/setup_env.sh where only these Pythons are."""
        for name, version in versions.items():
            info = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
            write_command(tmp_path / name, f'exec {sys.executable} -c "{info}\n$2"\n')
        script = f"source {ROOT / 'scripts' / 'setup_env.sh'}; {command}"
        command_line = [shutil.which("bash") or "bash", "-c", script]
        return subprocess.run(command_line, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)

    done = setup("fill_venv venv requirements.txt", python3="3.14", python="3.9")
    assert done.returncode == 1
    assert "Python 3.10, 3.11, 3.12 or 3.13" in done.stderr
    assert setup("find_python", **{"python3.12": "3.12"}).stdout == "python3.12\n"


def write_command(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}")
    file.chmod(0o755)
