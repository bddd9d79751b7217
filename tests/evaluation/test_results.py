"""What is finished is found again, as long as nothing has changed that could change it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramoe.evaluation import Prepared, read_task, summarise
from loramoe.evaluation.results import Store, facts_of, fingerprint
from loramoe.utils import UsageError

SCORES = [{"where": "row 1", "task_type": None, "f1": 0.5}]


@pytest.fixture
def task(write, questions) -> Prepared:
    return Prepared(read_task(write(questions)), (), ())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", {"max_new_tokens": 5}, {"base": {"w": "1"}, "one/adapter": {"w": "2"}})


def test_scores_are_found_again(store, task) -> None:
    assert store.find("one/adapter", task) is None
    store.keep("one/adapter", task, SCORES)
    assert store.find("one/adapter", task) == SCORES
    assert store.find("base", task) is None
    assert [file.name for file in (store.folder / "scores").iterdir()] == ["task--one_adapter.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"max_new_tokens": 6}},
        {"models": {"base": {"w": "1"}, "one/adapter": {"w": "3"}}},
        {"models": {"base": {"w": "3"}, "one/adapter": {"w": "2"}}},
        {"versions": {"torch": "0"}},
    ],
)
def test_of_something_else_they_are_not(store, task, change) -> None:
    store.keep("one/adapter", task, SCORES)
    assert replace(store, **change).find("one/adapter", task) is None


def test_of_another_task_they_are_not_but_of_one_more_adapter_they_are(store, task) -> None:
    store.keep("one/adapter", task, SCORES)
    assert store.find("one/adapter", replace(task, task=replace(task.task, sha256="0"))) is None
    assert replace(store, models={**store.models, "more": {}}).find("one/adapter", task) == SCORES


@pytest.mark.parametrize("text", ["", "{", "[]", '{"asked": 3}'])
def test_what_is_no_file_of_scores_is_measured_again(store, task, text: str) -> None:
    store.keep("base", task, SCORES)
    next((store.folder / "scores").iterdir()).write_text(text)
    assert store.find("base", task) is None


def test_results_say_what_was_measured_with_what(store, task) -> None:
    lines = summarise("task", 0, {"base": SCORES, "one/adapter": SCORES})
    table = store.finish(lines, [task], {"hardware": "a CPU", "date": "2026-11-22", "command": "evaluate"})
    results = json.loads((store.folder / "results.json").read_text())
    assert results["tasks"]["task"] == {"file": str(task.task.file), "sha256": task.task.sha256}
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert (results["hardware"], results["models"]["base"], results["settings"]) == (
        "a CPU",
        {"w": "1"},
        {"max_new_tokens": 5},
    )
    assert results["lines"][0]["values"]["base"]["value"] == 0.5
    text = (store.folder / "results.md").read_text()
    assert text.startswith(table)
    assert f"torch {torch.__version__.split(chr(43))[0]}" in text


def test_a_table_that_cannot_be_written_leaves_the_earlier_one(store, task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise OSError("No space left on device")

    facts = {"hardware": "a CPU", "date": "2026-11-22", "command": "evaluate"}
    store.finish(summarise("task", 0, {"base": SCORES, "one/adapter": SCORES}), [task], facts)
    table = store.folder / "results.md"
    earlier = table.read_text()
    monkeypatch.setattr("loramoe.evaluation.results.write_json", lambda file, values: None)
    monkeypatch.setattr("loramoe.utils.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        store.finish([], [task], facts)
    assert table.read_text() == earlier


def test_a_fingerprint_is_of_all_files_that_define_a_model(saved: Path) -> None:
    (saved / "README.md").write_text("not this")
    (saved / "merges.txt").write_text("of a tokenizer")
    (saved / "runs").mkdir()
    weights = (saved / "adapter_model.safetensors").read_bytes()
    found = fingerprint(str(saved))
    assert sorted(found) == ["adapter_config.json", "adapter_model.safetensors", "merges.txt"]
    assert found["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()


def test_a_model_of_the_hub_is_found_in_the_cache(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(saved / "config.json")
    monkeypatch.setattr("loramoe.evaluation.results.try_to_load_from_cache", lambda name, file: config)
    assert fingerprint("someone/model") == fingerprint(str(saved))


def test_a_model_that_is_nowhere_is_told() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"'some/model' is neither a folder nor in the hub's cache, .* Download it"
    ):
        fingerprint("some/model")


@pytest.mark.parametrize("in_the_way", ["results", "results/scores"])
def test_a_folder_that_cannot_be_written_to(in_the_way, store, tmp_path: Path) -> None:
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file")
    with pytest.raises(UsageError, match=rf"set --output_dir to a folder that can be written to, got .*{in_the_way}: "):
        store.check_writable()


def test_facts() -> None:
    facts = facts_of(torch.device("cpu"), "evaluate --file a")
    assert facts["command"] == "evaluate --file a"
    assert f"{torch.get_num_threads()} threads" in facts["hardware"]
