"""What the pages tell readers to run runs: shell commands, Python blocks, the notebook, and docs/llama3.md as dry runs.

The commands run in a copy of the repository whose data are cut to a few samples, with variables that make runs short.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer, LlamaConfig

from loramoe.cli import main
from loramoe.compat.tokenizer import save_tokenizer
from scripts.memory_tables import LLAMA

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)

# --- Shell commands --------------------------------------------------------------------------------------------------

# In this order: the first one trains the adapter that the others use.
GUIDES = ["index", "training", "tools", "data", "distributed", "experts", "export", "serving", "evaluation"]
RUN = ("README.md", *(f"docs/{guide}.md" for guide in GUIDES))
FLAGS = (
    "--base_model data/tiny_llama --dataset_dir data/tiny_data/train --output_dir output/mine --overwrite_output_dir"
)
# Not run: installations, the hub, several machines, GPUs, ZeRO (tests/distributed), other tools (scripts/ecosystem),
# and "…" for files of the reader's.
NOT_RUN = re.compile(
    r"^(pip|hf|srun|mkdir|cp|curl|vllm|python convert_hf|pretrained_model=meta|COMPASS)|smollm2|push_to_hub|node_rank"
    r"|zero|flash_attn|liger|lm_eval |opencompass|llama2|transformers serve|…"
)
NEEDS = {"load_in_kbits": "bitsandbytes", "loramoe evaluate": "lm_eval"}
SHORT = {"max_steps": "2", "eval_steps": "2", "save_steps": "2", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def commands() -> list[str]:
    """The commands of all pages, each once."""
    code = "\n".join(code for page in RUN for name, code, _ in BLOCK.findall(PAGES[page]) if name == "bash")
    lines = [line.split("  #")[0].strip() for line in re.sub(r" *\\\n *", " ", code).splitlines()]
    lines = [line.replace("loramoe train … ", f"loramoe train {FLAGS} ") for line in lines]
    missing = [words for words, package in NEEDS.items() if not importlib.util.find_spec(package)]
    return [
        line
        for line in dict.fromkeys(filter(None, lines))
        if not NOT_RUN.search(line) and not any(words in line for words in missing)
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository with little data."""
    copy = tmp_path / "LoRAMoE"
    ignored = shutil.ignore_patterns(".*", "output*", "models", "__pycache__", "tests", "results")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name, count in (("train/train.json", 16), ("test.json", 8), ("recall.json", 4)):
        file = copy / "data/tiny_data" / name
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))[:count]), encoding="utf-8")
    (copy / "my_data.yaml").write_text("datasets:\n  - {path: data/tiny_data/train}\n")
    shutil.copytree(ROOT / "tests/golden/six_experts_balanced/adapter", copy / "original_adapter")
    return copy


@pytest.mark.slow(minutes=6)
def test_the_commands_of_the_pages_run(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`loramoe` runs in this process, to import its libraries once."""
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", checkout / ".cache")
    for name, value in {**SHORT, "PYTHON": sys.executable, "HF_DATASETS_CACHE": str(checkout / ".cache")}.items():
        monkeypatch.setenv(name, value)
    for line in commands():
        if line.startswith("loramoe "):
            assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr())
        else:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stderr)
        if line == "bash run_loramoe.sh":
            output = PAGES["README.md"].partition("Finished.")[2].partition("```")[0]
            labels = re.findall(r"^  (\w[^:]*?)(?:   |: )", output, re.MULTILINE)
            assert [label for label in labels if label not in done.stdout] == []


# --- Python blocks ---------------------------------------------------------------------------------------------------

CELLS = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
NOTEBOOK = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
PYTHON = {
    f"{page}-{n}": (code, output)
    for page, text in PAGES.items()
    for n, (name, code, output) in enumerate(BLOCK.findall(text))
    if name == "python"
} | {"notebook": (NOTEBOOK, "")}
ANSWER = "pickles"  # of README and notebook


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    code, output = PYTHON[name]
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    (tmp_path / "data").symlink_to(ROOT / "data")
    settings = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code.replace("/path/to/LoRAMoE", str(ROOT))]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not output or done.stdout == output
    assert ANSWER in done.stdout.split() or ANSWER not in code


# --- docs/llama3.md as dry runs, on folders with the sizes of the models and without weights --------------------------

LLAMA3 = PAGES["docs/llama3.md"]
COMMANDS = re.findall(r"^((?:\w+=.*\n)+?.*bash run_loramoe\.sh.*)$", LLAMA3, re.MULTILINE)
OTHER_NAMES = {"pretrained_model": "base_model", "prompt_template": "template"}


@pytest.fixture
def job(own_dataset_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the page's YAML, data for it, and models of the page's sizes."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_llama")
    for name, sizes in LLAMA.items():
        folder = tmp_path / "meta-llama" / f"Meta-{name}-Instruct"
        LlamaConfig(**sizes, tie_word_embeddings=False, dtype="bfloat16").save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
    (yaml,) = [code for name, code, _ in BLOCK.findall(LLAMA3) if name == "yaml"]
    (tmp_path / "my_data.yaml").write_text(yaml)
    (tmp_path / "my_data").mkdir()
    for name, count in (("tasks", 6), ("questions", 4), ("tasks_test", 1), ("questions_test", 1)):
        sample = {"instruction": f"Say {name}.", "output": name}
        (tmp_path / f"my_data/{name}.jsonl").write_text(f"{json.dumps(sample)}\n" * count)


def flags_of(command: str) -> list[str]:
    words = shlex.split(command.replace("\\\n", " "))
    pairs = [word.split("=", 1) for word in words[: words.index("bash")]]
    values = {OTHER_NAMES.get(name, name): value for name, value in pairs if name not in ("engine", "load_in_kbits")}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def dry_run(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["train", *flags, "--dry_run", "true", "--use_cpu", "true"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "frozen"), [(0, 8030261248), (1, 8030261248), (2, 70553706496)])
def test_a_dry_run_prints_batch_samples_and_memory(
    job: None, number: int, frozen: int, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = dry_run(flags_of(COMMANDS[number]), capsys)
    assert f"{frozen:,} frozen" in printed
    assert "64 = 2 per device x 32 accumulated" in printed
    assert "tasks (type 0): 6, knowledge (type 1): 4" in printed
    assert float(re.findall(r"([\d.]+) GiB by formula", printed)[0]) > 2 * frozen / 2**30
    if number == 0:
        assert printed == dry_run([str(ROOT / "configs/llama3_8b.yaml")], capsys)
