"""The command: base against adapters in one table, and no finished answer is lost, asked for twice or overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loramoe.data import PromptFormat, save_prompt_format

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'loramoe[eval]'")

from loramoe.evaluate import main
from loramoe.evaluation.harness import AdapterLM


@pytest.fixture
def adapter(saved_on_tiny_task: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter; lm-eval does not describe the machine, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    return Path(saved_on_tiny_task)


@pytest.fixture
def flags(tiny_task: Any, adapter: Path, tmp_path: Path) -> list[str]:
    files = [str(tiny_task.test_file), str(tiny_task.recall_file)]
    small = ["--max_new_tokens", "4", "--batch_size", "6", "--device", "cpu"]
    return ["--adapter", str(adapter), "--file", *files, "--output_dir", str(tmp_path / "out"), *small]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests of each kind reach a model."""
    counts: list[int] = []
    for name in ("loglikelihood", "generate_until"):
        original = getattr(AdapterLM, name)

        def counting(self: Any, requests: Any, _original: Any = original) -> Any:
            counts.append(len(requests))
            return _original(self, requests)

        monkeypatch.setattr(AdapterLM, name, counting)
    return counts


def test_base_and_adapter_in_one_table_by_the_template_of_the_training(
    flags: list[str], tiny_task: Any, adapter: Path, tmp_path: Path, capsys: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w9 {% endfor %}"
    tokenizer.save_pretrained(adapter)
    save_prompt_format(adapter, PromptFormat("chat", type_names={0: "tasks", 1: "knowledge"}))
    main(flags)
    table = (tmp_path / "out/results.md").read_text()
    assert table in capsys.readouterr().out
    assert {row.split("|")[2].strip() for row in table.splitlines()[2:]} == {"all", "tasks", "knowledge"}
    lines = json.loads((tmp_path / "out/results.json").read_text())["lines"]
    assert {(line["task"], line["metric"]) for line in lines} == {
        *(("test", name) for name in ("perplexity", "exact_match", "f1")),
        *(("recall", name) for name in ("perplexity", "recall")),
    }
    value = {name: one["value"] for name, one in lines[0]["values"].items()}
    assert value["adapter"] - value["base"] == lines[0]["differences"]["adapter"]["value"] != 0
    logged = json.loads((tmp_path / "out/adapter.json").read_text())["samples"]["test"]
    assert [sample["arguments"][0][0].endswith(" w9") for sample in logged] == [True] * 12


@pytest.mark.slow
def test_answers_are_kept_and_results_are_not_overwritten(
    flags: list[str], adapter: Path, asked: list[int], tmp_path: Path, capsys: Any
) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(SystemExit):
        main(flags)
    assert f"the adapter {adapter} cannot be loaded on" in " ".join(capsys.readouterr().err.split())
    assert (asked, (tmp_path / "out/base.json").is_file()) == ([18, 18], True)
    weights.write_bytes(whole)
    main(flags)
    assert asked[2:] == [18, 18]  # the adapter's: those of the base model are read from the cache
    with pytest.raises(SystemExit):
        main(flags)
    assert "holds an evaluation already. Set --overwrite" in capsys.readouterr().err
    table = (tmp_path / "out/results.md").read_text()
    main([*flags, "--overwrite"])
    assert (asked[4:], (tmp_path / "out/results.md").read_text()) == ([], table)
    weights.touch()
    main([*flags, "--overwrite", "--limit", "2"])
    assert asked[4:] == [4, 4]  # a changed file is another adapter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--file", "none.json"], "data path 'none.json' does not exist"),
        (["--adapter", "none"], "no adapter at none"),
        (["--adapter", "base=none"], "'base' is the name of the base model"),
        (["--adapter", "none", "none"], "each file and adapter can be given once"),
        (["--load_in_kbits", "3"], "load_in_kbits must be 4, 8 or 16; got load_in_kbits=3"),
        # lm-eval reads all its tasks.
        pytest.param(["--tasks", "no_such_task"], "no_such_task", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_reported_in_one_line(flags: list[str], changes: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*flags, *changes])
    assert ended.value.code != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_lm_eval_the_package_is_named(flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(flags)
    assert "pip install 'loramoe[eval]'" in capsys.readouterr().err
