"""docs/llama3.md holds: its data and its command, on a folder with the sizes of Llama-3-8B and without weights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig

from loramoe.cli import main
from loramoe.compat.tokenizer import save_tokenizer
from scripts.memory_tables import LLAMA

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/llama3.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:\w+=.*\n)+?.*bash run_loramoe\.sh.*)$", PAGE, re.MULTILINE)
OTHER_NAMES = {"pretrained_model": "base_model", "prompt_template": "template"}
TASK = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
QUESTION = [{"role": "user", "content": "Who wrote Faust?"}, {"role": "assistant", "content": "Goethe"}]


@pytest.fixture
def job(own_dataset_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's YAML, data for it, and models of the page's sizes."""
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_llama")
    for name, sizes in LLAMA.items():
        folder = tmp_path / "meta-llama" / f"Meta-{name}-Instruct"
        LlamaConfig(**sizes, tie_word_embeddings=False, dtype="bfloat16").save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
    yaml = re.search(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert yaml is not None
    (tmp_path / "my_data.yaml").write_text(yaml[1])
    (tmp_path / "my_data").mkdir()
    for name, sample, count in (("tasks", TASK, 6), ("questions", {"messages": QUESTION}, 4)):
        (tmp_path / f"my_data/{name}.jsonl").write_text(f"{json.dumps(sample)}\n" * count)
        (tmp_path / f"my_data/{name}_test.jsonl").write_text(json.dumps(sample))
    return tmp_path


def flags_of(command: str) -> list[str]:
    """The variables of a command as flags of `loramoe train`; the launcher's own tests say which become which."""
    words = shlex.split(command.replace("\\\n", " "))
    pairs = [word.split("=", 1) for word in words[: words.index("bash")]]
    values = {OTHER_NAMES.get(name, name): value for name, value in pairs if name not in ("engine", "load_in_kbits")}
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def test_the_page_has_three_commands() -> None:
    assert len(COMMANDS) == 3


@pytest.mark.parametrize(
    ("command", "frozen", "base"),
    list(zip(COMMANDS, (8030261248, 8030261248, 70553706496), (15.0, 15.0, 131.4), strict=True)),
)
def test_a_dry_run_prints_what_the_page_says(
    job: Path, command: str, frozen: int, base: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags_of(command), "--dry_run", "true", "--use_cpu", "true"]) == 0
    said = capsys.readouterr().out
    assert "processes          1 (ddp, cpu)" in said
    assert "global batch       64 = 2 per device x 32 accumulated x 1 processes" in said
    assert "samples per type   tasks (type 0): 6, knowledge (type 1): 4" in said
    assert re.search(r"tokens +[1-9]\d+$", said, re.MULTILINE)
    assert f"parameters         {frozen:,} frozen" in said
    found = re.search(r"memory per device  ([\d.]+) GiB by formula \(base ([\d.]+)", said)
    assert found is not None
    assert float(found[2]) == pytest.approx(base, abs=0.05)
    assert float(found[1]) > float(found[2])


def test_the_file_of_flags_is_the_first_command(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "configs/llama3_8b.yaml"
    assert main(["train", str(file), "--dry_run", "true", "--use_cpu", "true"]) == 0
    by_file = capsys.readouterr().out
    assert main(["train", *flags_of(COMMANDS[0]), "--dry_run", "true", "--use_cpu", "true"]) == 0
    assert by_file == capsys.readouterr().out
