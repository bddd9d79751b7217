"""The command: from an adapter's folder and a file of rows to the page, for our adapters and those of the release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, LoraMoeConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import PromptFormat, save_prompt_format
from loramoe.export.original import convert
from loramoe.report.__main__ import main
from tests.helpers import edit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def adapter(tiny_task, perturb, tmp_path: Path) -> Path:
    """A LoRAMoE adapter on the base model of `tiny_task`."""
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    config = LoraMoeConfig(lora_nums=4, r=2, blc_target="match", target_modules=["gate_proj", "up_proj", "down_proj"])
    perturb(get_peft_model(base, config)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def numbers(folder: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads((folder / "experts.json").read_text(encoding="utf-8"))
    return told


def test_from_adapter_to_page(adapter, tiny_task, tmp_path, capsys):
    flags = ["--data", tiny_task.test_file, "--out", tmp_path / "out", "--base", tiny_task.base, "--batch_size", 5]
    assert main([str(adapter), *map(str, flags), "--min_count", "2", "--top", "4"]) == 0
    printed = capsys.readouterr().out
    assert "kept: 12 (type 0: 6, type 1: 6)" in printed
    assert 'constraint in training: blc_target="match": the matching group is pushed to more' in printed
    assert printed.endswith(f"wrote {tmp_path / 'out' / 'experts.html'}\n")
    told = numbers(tmp_path / "out")
    assert (told["adapter"], told["base_model"], told["data"]) == ("adapter", tiny_task.base.name, "test.json")
    assert (told["rows"], told["min_count"], told["blc_target"]) == (12, 2, "match")
    texts = [token["text"] for band in told["bands"] for liked in band["liked"] for token in liked]
    assert texts
    assert all(len(liked) <= 4 for band in told["bands"] for liked in band["liked"])
    assert str(tmp_path) not in (tmp_path / "out" / "experts.html").read_text(encoding="utf-8")  # no path is told


def test_rows_are_spread_over_the_file_and_may_have_many_types(adapter, tiny_task, tmp_path):
    rows = [{"instruction": "w1 w2", "output": "w9", "task_type": kind} for kind in (0, 1, 2, 3) for _ in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ["--data", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out"), "--model", str(tiny_task.base)]
    assert main([str(adapter), *flags, "--rows", "8"]) == 0
    told = numbers(tmp_path / "out")
    assert (told["rows"], told["task_types"]) == (8, [0, 1, 2, 3])
    assert len(set(told["tokens_T"])) == 1
    assert (tmp_path / "out" / "experts_gates_type3.png").is_file()


def test_a_row_without_room_is_left_out_and_no_other_counts_twice(adapter, tiny_task, tmp_path, capsys):
    rows = [{"instruction": "w1 w2", "output": "w9", "task_type": 0}, {"instruction": "w3", "output": "w4"}]
    long = {"instruction": "w5 " * 40, "output": "w6", "task_type": 0}
    for name, of_file in (("all", [long, *rows]), ("short", rows)):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"task_type": 1, **row} for row in of_file]))
        flags = ["--data", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name), "--max_seq_length", "32"]
        assert main([str(adapter), "--model", str(tiny_task.base), *flags]) == 0
        assert ("max_seq_length=32: 1\n" in capsys.readouterr().out) is (name == "all")
    told, short = numbers(tmp_path / "all"), numbers(tmp_path / "short")
    assert told["rows"] == 2
    assert (told["tokens_T"], told["gate_TLE"]) == (short["tokens_T"], short["gate_TLE"])


def test_an_adapter_of_the_original_release(tmp_path, adapter, tiny_task):
    """Its files, of the same weights, give the same numbers."""
    edit(adapter, blc_target="paper", blc_importance="sum")
    original = tmp_path / "original"
    convert(adapter, original, to_original=True)
    for name in (adapter, original):
        out = tmp_path / f"of_{name.name}"
        flags = ["--data", str(tiny_task.test_file), "--out", str(out), "--model", str(tiny_task.base)]
        assert main([str(name), *flags]) == 0
    assert numbers(tmp_path / "of_original")["gate_TLE"] == numbers(tmp_path / "of_adapter")["gate_TLE"]


def test_a_token_of_html_in_the_vocabulary(adapter, tiny_task, tmp_path):
    """A tokenizer saved with the adapter may hold anything."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    tokenizer.add_tokens(["<script>alert(1)</script>"])
    tokenizer.save_pretrained(adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    base.resize_token_embeddings(len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    row = {"instruction": "w1 <script>alert(1)</script> " * 9, "output": "w3", "task_type": 0}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    flags = ["--data", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out"), "--model", str(tmp_path / "base")]
    assert main([str(adapter), *flags]) == 0
    page = (tmp_path / "out" / "experts.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.json"], "data path 'nowhere.json' does not exist"),
        (["--data", "{test}", "--batch_size", "0"], "batch_size must be at least 1; got batch_size=0. Raise it."),
        (["--data", "{test}", "--rows", "0"], "rows must be at least 1; got rows=0. Raise it."),
        (["--data", "{test}", "--min_count", "-1"], "min_count must be at least 1"),
        (["--data", "{test}", "--top", "0"], "top must be at least 1"),
        (["--data", "{test}", "--template", "chat"], "needs tokenizer.chat_template"),
        (["--data", "{test}", "--device", "nowhere"], "set --device to one that is here, got 'nowhere'"),
        (["--data", "{test}", "--out", "{test}"], "test.json is a file, not a folder"),
    ],
)
def test_what_goes_wrong_is_told_in_a_line(adapter, tiny_task, tmp_path, capsys, flags, message):
    flags = [flag.format(test=tiny_task.test_file) for flag in flags]
    if "--out" not in flags:
        flags += ["--out", str(tmp_path / "out")]
    assert main([str(adapter), "--model", str(tiny_task.base), *flags]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("loramoe report: ")
    assert message in told
    assert not (tmp_path / "out").exists()


def test_the_layout_is_that_of_the_training(adapter, tiny_task, tmp_path, capsys):
    save_prompt_format(adapter, PromptFormat("chat", 64))
    flags = ["--data", str(tiny_task.test_file), "--out", str(tmp_path / "out")]
    assert main([str(adapter), *flags, "--model", str(tiny_task.base)]) == 1
    assert "needs tokenizer.chat_template" in capsys.readouterr().err


def test_other_adapters_have_no_experts(tiny_task, tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    get_peft_model(base, LoraConfig(target_modules=["up_proj"])).save_pretrained(tmp_path / "plain")
    flags = ["--data", str(tiny_task.test_file), "--out", str(tmp_path / "out"), "--model", str(tiny_task.base)]
    assert main([str(tmp_path / "plain"), *flags]) == 1
    assert "is of type LORA, which has no experts" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "plain")
    assert main([str(tmp_path / "plain"), *flags]) == 1
    assert "no adapter at" in capsys.readouterr().err
