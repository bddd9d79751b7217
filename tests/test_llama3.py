"""docs/llama3.md holds: its commands as dry runs, on folders with the sizes of the models and without weights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaConfig

from loramoe.cli import main
from loramoe.compat.tokenizer import save_tokenizer
from scripts.memory_tables import LLAMA

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/llama3.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:\w+=.*\n)+?.*bash run_loramoe\.sh.*)$", PAGE, re.MULTILINE)
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
    (tmp_path / "my_data.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0])
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
