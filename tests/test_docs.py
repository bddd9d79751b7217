"""The pages hold: links lead somewhere, names exist, Python blocks run, tables are up to date."""

from __future__ import annotations

import importlib.util
import json
import os
import pydoc
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig

from loramoe.cli import main
from loramoe.compat.tokenizer import save_tokenizer
from scripts import flag_table, memory_tables
from scripts.blocks import differing
from scripts.ecosystem import serving
from scripts.figures import direction, overview
from scripts.memory_tables import LLAMA

ROOT = Path(__file__).resolve().parent.parent
FILES = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "data/README.md")
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in sorted(FILES)}
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(
    r"`((?:configs|data|docs|evaluation|examples|integrations|loramoe|peft|scripts|tests|transformers)/[\w./-]+)`"
)
NAME = re.compile(r"(?:`|^::: )(loramoe(?:\.\w+)+)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page: str) -> None:
    for link in LINK.findall(FENCED.sub("", PAGES[page])):
        target, _, anchor = link.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        if not target.startswith(("https://", "mailto:")):
            assert file.exists(), link
            assert not anchor or anchor in anchors(file), link
    for name in FILE.findall(PAGES[page]):
        assert (ROOT / name).exists(), name


def exists(name: str) -> bool:
    try:
        return pydoc.locate(name) is not None
    except pydoc.ErrorDuringImport:  # a plug-in for a tool that is not installed
        return True


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md", "README_zh.md")])
def test_named_code_exists(page: str) -> None:
    assert [name for name in NAME.findall(PAGES[page]) if not exists(name)] == []


# --- Code ------------------------------------------------------------------------------------------------------------

CELLS = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
NOTEBOOK = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
BLOCKS = {f"{page}-{n}": block for page, text in PAGES.items() for n, block in enumerate(PYTHON.findall(text))}
BLOCKS = {name: block for name, block in BLOCKS.items() if "README_zh" not in name} | {"notebook": (NOTEBOOK, "")}
ANSWER = "pickles"  # of README and notebook


@pytest.mark.slow(minutes=2)
@pytest.mark.parametrize("name", BLOCKS)
def test_python_blocks_run(name: str, tmp_path: Path) -> None:
    code, output = BLOCKS[name]
    for missing in [
        name for name in re.findall(r"^(?:from|import) (\w+)", code, re.M) if not importlib.util.find_spec(name)
    ]:
        pytest.skip(f"{missing} is not installed")
    (tmp_path / "data").symlink_to(ROOT / "data")
    code = code.replace("/path/to/LoRAMoE", str(ROOT))
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not output or done.stdout == output
    if name in ("README.md-0", "notebook"):
        assert ANSWER in done.stdout.split()


# --- Tables, figures, site -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [flag_table.blocks, memory_tables.blocks, direction.blocks, serving.blocks])
def test_tables_are_up_to_date(blocks: Callable[[], dict[tuple[str, str], str]]) -> None:
    assert differing(blocks()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", [overview, direction])
def test_figures_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    script.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


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
    (tmp_path / "my_data.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", LLAMA3, re.DOTALL | re.MULTILINE)[0])
    (tmp_path / "my_data").mkdir()
    for name, count in (("tasks", 6), ("questions", 4), ("tasks_test", 1), ("questions_test", 1)):
        sample = {"instruction": f"Say {name}.", "output": name}
        (tmp_path / f"my_data/{name}.jsonl").write_text(f"{json.dumps(sample)}\n" * count)


def flags_of(command: str) -> list[str]:
    words = shlex.split(command.replace("\\\n", " "))
    pairs = [word.split("=", 1) for word in words[: words.index("bash")]]
    values = {OTHER_NAMES.get(name, name): value for name, value in pairs if name not in ("engine", "load_in_kbits")}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def dry_run(flags: list[str], capsys: Any) -> str:
    assert main(["train", *flags, "--dry_run", "true", "--use_cpu", "true"]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "frozen"), [(0, 8030261248), (1, 8030261248), (2, 70553706496)])
def test_a_dry_run_prints_batch_samples_and_memory(job: None, number: int, frozen: int, capsys: Any) -> None:
    printed = dry_run(flags_of(COMMANDS[number]), capsys)
    assert f"{frozen:,} frozen" in printed
    assert "64 = 2 per device x 32 accumulated" in printed
    assert "tasks (type 0): 6, knowledge (type 1): 4" in printed
    assert float(re.findall(r"([\d.]+) GiB by formula", printed)[0]) > 2 * frozen / 2**30
    if number == 0:
        assert printed == dry_run([str(ROOT / "configs/llama3_8b.yaml")], capsys)
