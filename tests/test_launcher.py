"""The launcher as a user starts it: on the embedded model, with its numbers, its figure, its adapter, and twice."""

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
LAUNCHER = (ROOT / "run_loramoe.sh").read_text()
TINY = ROOT / "data" / "tiny_llama" / "model.safetensors"


def launch(output_dir: Path, cache: Path, *flags: str, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(cache)}
    environment |= {"output_dir": str(output_dir), **{name: str(value) for name, value in variables.items()}}
    command = ["bash", str(ROOT / "run_loramoe.sh"), *flags]
    # From elsewhere and without standard input: the launcher must not care.
    return subprocess.run(
        command,
        cwd=cache.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_file(), reason="data/tiny_llama is not there; scripts/tiny_world/pretrain.py makes it")
def test_the_launcher_trains_evaluates_saves_and_says_where(tmp_path: Path):
    short = {"max_steps": 20, "save_steps": 10, "eval_steps": 10, "lora_rank": 2}
    done = launch(tmp_path / "out", tmp_path / "cache", "--lora_nums", "4", **short)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    config = json.loads((out / "sft_lora_model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_nums"], config["peft_type"]) == (2, 4, "LORAMOE")
    assert (config["blc_weight"], config["blc_alpha"], config["lora_alpha"]) == (0.1, 0.1, 32)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert metrics["before"]["recall"] >= 0.95
    assert (out / "expert_shares.png").stat().st_size > 10_000
    assert list(out.glob("runs/*/events.out.tfevents.*"))
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert any("blc" in entry and "share/type1/group0" in entry for entry in history)
    assert f"adapter   {out / 'sft_lora_model'}" in done.stdout

    again = launch(out, tmp_path / "cache", "--lora_nums", "4", **short)
    assert again.returncode == 1
    assert "holds a finished run. Set --overwrite_output_dir true" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.fixture
def words(tmp_path: Path):
    """What the launcher would start on a machine with certain GPUs: `words(compute_capabilities, **variables)`."""
    python = tmp_path / "python"
    shows = f'printf "%s\\n" "$@"; echo "$CUDA_VISIBLE_DEVICES" >{tmp_path}/visible'
    python.write_text(f"#!/bin/sh\ncase $1 in */check_env.py) exit 0 ;; *) {shows} ;; esac\n")
    python.chmod(0o755)

    def start(capabilities: tuple[str, ...] = (), *flags: str, **variables: object) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        smi = tmp_path / "nvidia-smi"
        listed = "".join(f"echo 'GPU {index}: a GPU'\n" for index in range(len(capabilities)))
        lines = "".join(
            f"case ,${{4:-{index}}}, in *,{index},*) echo {cap} ;; esac\n" for index, cap in enumerate(capabilities)
        )
        smi.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then\n:\n{listed}else\n:\n{lines}fi\n')
        smi.chmod(0o755)
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(python)}
        environment |= {name: str(value) for name, value in variables.items()}
        command = ["bash", str(ROOT / "run_loramoe.sh"), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        (tmp_path / "told").write_text(done.stderr)
        return done.stdout.splitlines()

    return start


def value(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def test_on_a_cpu_one_process_is_started_without_a_launcher(words):
    started = words()
    assert started[0] == "train.py"
    assert (value(started, "--use_cpu"), value(started, "--bf16"), value(started, "--deepspeed")) == (
        "true",
        "false",
        None,
    )
    assert value(started, "--recall_file") == "data/tiny_data/recall.json"


def test_on_gpus_there_is_a_process_for_each_with_deepspeed_and_bfloat16(words):
    started = words(("9.0", "9.0"))
    assert started[:2] == ["-m", "loramoe.training.launch"]
    assert value(started, "--nproc_per_node") == "2"
    assert (value(started, "--deepspeed"), value(started, "--bf16")) == ("ds_config.json", "true")
    assert "--use_cpu" not in started


def test_gpus_can_be_hidden_and_deepspeed_left_out(words):
    started = words(("9.0", "9.0"), CUDA_VISIBLE_DEVICES="1", deepspeed="")
    assert started[0] == "train.py"
    assert words(("9.0",), CUDA_VISIBLE_DEVICES="")[-1] != ""
    assert value(words(("9.0",), CUDA_VISIBLE_DEVICES=""), "--use_cpu") == "true"


@pytest.mark.parametrize("named", ["0,1", "GPU-4f2a"])
def test_gpus_that_are_named_where_there_are_none_are_not_counted(words, tmp_path: Path, named: str):
    started = words((), CUDA_VISIBLE_DEVICES=named)
    assert started[0] == "train.py"
    flags = ("--use_cpu", "--bf16", "--deepspeed")
    assert [value(started, flag) for flag in flags] == ["true", "false", None]
    told = f"CUDA_VISIBLE_DEVICES={named}, but nvidia-smi lists no GPU, so the CPU is used. If there is a GPU, make "
    assert (tmp_path / "told").read_text() == f"{told}nvidia-smi -L list it.\n"


@pytest.mark.parametrize("named", ["", "-1"])
def test_hidden_gpus_are_not_told_of(words, tmp_path: Path, named: str):
    for capabilities in ((), ("9.0",)):
        assert value(words(capabilities, CUDA_VISIBLE_DEVICES=named), "--use_cpu") == "true"
        assert (tmp_path / "told").read_text() == ""


@pytest.mark.parametrize(("capability", "expected"), [("7.5", "false"), ("8.0", "true"), ("12.0", "true")])
def test_bfloat16_where_the_gpu_has_it(words, capability: str, expected: str):
    assert value(words((capability,)), "--bf16") == expected
    assert value(words((capability,), fp16="true"), "--bf16") == "false"


def test_bfloat16_where_all_the_gpus_that_are_used_have_it(words):
    assert value(words(("8.0", "7.5")), "--bf16") == "false"
    assert value(words(("8.0", "7.5"), nproc_per_node=1), "--bf16") == "true"
    assert value(words(("7.5", "8.0"), CUDA_VISIBLE_DEVICES="1"), "--bf16") == "true"
    assert value(words(("7.5", "8.0"), CUDA_VISIBLE_DEVICES="GPU-4f2a"), "--bf16") == "false"
    many = words(("9.0",) * 20_000, CUDA_VISIBLE_DEVICES="GPU-4f2a")  # more text than a pipe holds
    assert value(many, "--bf16") == "true"


@pytest.mark.parametrize(
    ("named", "processes", "visible"),
    [("-1", "1", "-1"), ("0,2,-1,3", "2", "0,2"), (" 3, 1", "2", "3,1"), ("GPU-4f2a,GPU-9c", "2", "GPU-4f2a,GPU-9c")],
)
def test_a_negative_index_ends_the_visible_gpus(words, tmp_path: Path, named: str, processes: str, visible: str):
    started = words(("9.0",) * 4, CUDA_VISIBLE_DEVICES=named, nnodes=2)
    assert value(started, "--nproc_per_node") == processes
    assert value(started, "--use_cpu") == ("true" if named == "-1" else None)
    assert (tmp_path / "visible").read_text().strip() == visible


@pytest.mark.parametrize(
    ("variables", "visible"),
    [
        ({"nproc_per_node": 1, "deepspeed": ""}, "0"),
        ({"nproc_per_node": 2, "CUDA_VISIBLE_DEVICES": "3,2,1"}, "3,2"),
        ({}, "0,1,2,3"),
    ],
)
def test_a_process_sees_no_gpu_too_many(words, tmp_path: Path, variables: dict[str, object], visible: str):
    words(("9.0",) * 4, **variables)
    assert (tmp_path / "visible").read_text().strip() == visible


def test_nodes(words):
    started = words(("8.0",) * 8, nnodes=2, node_rank=1, master_addr="10.0.0.1", master_port=1234)
    flags = ("--nnodes", "--node_rank", "--nproc_per_node", "--master_addr", "--master_port")
    assert [value(started, flag) for flag in flags] == ["2", "1", "8", "10.0.0.1", "1234"]


def test_deepspeed_on_a_cpu_when_asked_for(words):
    started = words((), deepspeed="ds_config.json", nproc_per_node=2)
    assert value(started, "--deepspeed") == "ds_config.json"
    assert (value(started, "--use_cpu"), value(started, "--nproc_per_node")) == ("true", "2")


def test_another_model_gets_the_papers_values_and_arguments_come_last(words):
    started = words((), "--lora_rank", "16", pretrained_model="some/llama", dataset_dir="rows")
    assert value(started, "--learning_rate") == "2e-4"
    assert value(started, "--output_dir") == "output/llama"
    assert "--recall_file" not in started
    assert "--validation_file" not in started
    assert started[-2:] == ["--lora_rank", "16"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--model_name_or_path", "some/llama"),
        ("--model_name_or_path=some/llama",),
        ("--model-name-or-path", "some/llama", "--seed", "1"),
        ("--model_name_or_path", "data/tiny_llama", "--model-name-or-path=some/llama"),
    ],
)
@pytest.mark.parametrize("variables", [{}, {"pretrained_model": "data/tiny_llama"}])
def test_a_model_that_is_named_by_flag_gets_no_value_of_another(words, flags: tuple[str, ...], variables: dict):
    started = words((), *flags, **variables)
    assert value(started, "--tokenizer_name_or_path") == "some/llama"
    assert value(started, "--output_dir") == "output/llama"
    assert (value(started, "--learning_rate"), value(started, "--max_seq_length")) == ("2e-4", "1024")
    assert "--recall_file" not in started
    assert started[-len(flags) :] == list(flags)


def test_the_small_model_that_is_named_by_flag_gets_its_own_values(words):
    started = words((), "--model_name_or_path", "data/tiny_llama", pretrained_model="some/llama")
    assert value(started, "--learning_rate") == "3e-3"
    assert value(started, "--recall_file") == "data/tiny_data/recall.json"


def test_data_that_are_named_by_flag_are_not_evaluated_on_other_rows(words):
    for flags in (["--dataset_dir", "my rows"], ["--dataset-dir=my rows"]):
        assert "--validation_file" not in words((), *flags)
    tiny = words((), "--dataset_dir", "data/tiny_data/train", dataset_dir="rows")
    assert value(tiny, "--validation_file") == "data/tiny_data/test.json"


def test_a_flag_without_its_value_is_left_to_train(words):
    assert words((), "--model_name_or_path")[-1] == "--model_name_or_path"
    assert words((), "--model_name_or_path", "--seed=1")[-2:] == ["--model_name_or_path", "--seed=1"]


def test_every_variable_can_be_overridden_and_is_explained():
    block = LAUNCHER.split("# --- processes")[0]
    assignments = re.findall(r"^(?: {4})?(\w+)=\$\{(\w+):-(.*)$", block, flags=re.MULTILINE)
    assert len(assignments) > 35
    assert all(name == variable for name, variable, _ in assignments)
    silent = [line for line in block.splitlines() if re.match(r"\w+=\$\{", line) and "#" not in line]
    assert silent == []


def test_the_papers_values_stand_at_the_top():
    for value in ("learning_rate:-2e-4", "lora_rank:-4", "lora_alpha:-32", "lora_dropout:-0.05", "warmup_ratio:-0.03"):
        assert f"{{{value}}}" in LAUNCHER
    for value in ("blc_weight:-0.1", "blc_alpha:-0.1", "lr_scheduler_type:-cosine"):
        assert f"{{{value}}}" in LAUNCHER


def test_a_mistake_is_told_in_one_line(tmp_path: Path):
    done = launch(tmp_path / "out", tmp_path / "cache", "--lora_rnak", "4")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "train.py: unknown flag --lora_rnak. Did you mean --lora_rank?"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("there", [{"python3": "3.9", "python3.12": "3.12"}, {"python3": "3.14", "python3.12": "3.12"}])
def test_the_environment_is_made_with_a_python_that_is_supported(tmp_path: Path, there: dict[str, str]):
    assert find_python(tmp_path, there).stdout == "python3.12\n"


def test_a_python_that_is_too_new_is_told(tmp_path: Path):
    done = find_python(tmp_path, {"python3": "3.14", "python": "3.9"}, "fill_venv venv requirements.txt")
    assert done.returncode == 1
    assert done.stderr == "Python 3.10, 3.11, 3.12 or 3.13 is needed and was not found. Install one of them.\n"


def find_python(folder: Path, there: dict[str, str], command: str = "find_python") -> subprocess.CompletedProcess[str]:
    """Runs a command of scripts/setup_env.sh where only these Pythons are, each of the version that it is given."""
    (folder / "dirname").symlink_to(shutil.which("dirname") or "")
    for name, version in there.items():
        info = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0)"
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{info}\n$2"\n')
        (folder / name).chmod(0o755)
    script = f"source {ROOT / 'scripts' / 'setup_env.sh'}; {command}"
    bash = shutil.which("bash") or "bash"
    return subprocess.run([bash, "-c", script], env={"PATH": str(folder)}, capture_output=True, text=True, check=False)
