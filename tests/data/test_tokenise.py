"""Tokenising: labels, cutting and dropping, the report, and a cache that is found again but never stale."""

from __future__ import annotations

import sys

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramoe.data import DatasetError, TokeniseReport, conversation, get_template, shards, tokenise
from tests.data.cached import finished, unfinished

WORDS = st.text("ab é", min_size=1, max_size=12).filter(str.strip)
CUT = 20


@given(rows=st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2)), min_size=1, max_size=20))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_labels_hide_the_prompt_and_nothing_else(tokenizer, run, write, row, rows):
    rows = [row(instruction="!", output="!", task_type=9)] + [  # one that always fits
        row(instruction=instruction, output=output, task_type=task_type) for instruction, output, task_type in rows
    ]
    dataset, report = run(write("rows.jsonl", rows), max_seq_length=CUT)
    samples = [conversation(entry["instruction"], entry.get("input", ""), entry["output"]) for entry in rows]
    pairs = zip(rows, get_template("release", tokenizer).encode(samples), strict=True)
    fitting = [(entry, code) for entry, code in pairs if len(code.prompt) < CUT]
    assert report.kept == len(dataset) == len(fitting)
    assert report.dropped == len(rows) - len(fitting)
    assert report.cut == sum(len(code.prompt + code.target) > CUT for _, code in fitting)
    assert report.tokens == sum(len(ids) for ids in dataset["input_ids"])
    for result, (entry, code) in zip(dataset, fitting, strict=True):
        assert result["input_ids"] == code.input_ids[:CUT]
        assert result["labels"] == ([-100] * len(code.prompt) + code.target)[:CUT]
        assert result["labels"][-1] != -100
        assert result["task_types"] == entry["task_type"]


def test_columns_and_their_types(run, write, row):
    dataset, _ = run(write("rows.json", [row()]))
    ids = datasets.Sequence(datasets.Value("int32"))
    assert dataset.features == {"input_ids": ids, "labels": ids, "task_types": datasets.Value("int64")}


def test_the_report_counts_and_reads_well(run, write, row):
    long = "x" * CUT
    rows = [row(), row(output=long), row(instruction=long), row(task_type=0), row(instruction=long, task_type=0)]
    file = write("rows.json", rows)
    _, report = run(file, max_seq_length=CUT)
    tokens = 2 * len("<Who?>Me.>") + CUT
    assert report == TokeniseReport(5, 3, 1, 2, 0, tokens, {1: 2, 0: 1}, CUT)
    assert str(report) == (
        "rows read: 5, kept: 3 (type 0: 1, type 1: 2), tokens: 40\n"
        "answers cut at max_seq_length=20: 1\n"
        "rows dropped, as the prompt fills max_seq_length=20: 2"
    )
    assert run(file, max_seq_length=CUT)[1] == report, "the cache gives the same report"
    assert str(run(file)[1]) == "rows read: 5, kept: 5 (type 0: 2, type 1: 3), tokens: 99"


def test_the_report_of_a_chat_tells_of_special_tokens(run, write, row, chat_tokenizer):
    file = write("rows.json", [row(), row(output="a</s>")])
    _, report = run(file, tokenizer=chat_tokenizer, template="chat")
    assert report.special == 1
    assert str(report).endswith("\nrows with the text of a special token, which the chat template takes for one: 1")


def test_nothing_is_read_or_tokenised_twice(run, write, row, tmp_path, monkeypatch):
    file = write("rows.json", [row()])
    dataset, _ = run(file)
    (entry,) = finished(tmp_path)
    monkeypatch.setattr(tokenise, "write_shards", lambda *_, **__: pytest.fail("read again"))
    again, _ = run(file)
    assert again.to_list() == dataset.to_list()
    assert finished(tmp_path) == [entry]


def test_an_edited_file_is_new(run, write, row, tmp_path):
    for count, answer in enumerate(["Me.", "You", "Me."], start=1):
        dataset, _ = run(write("rows.json", [row(output=answer)]))
        assert dataset[0]["labels"][-4:-1] == [2 + ord(letter) - ord("!") for letter in answer]
        assert len(finished(tmp_path)) == min(count, 2), "the first text was still known"


@pytest.mark.parametrize("changes", [{"max_seq_length": 9}, {"template": "chat"}, {"frame": "$A"}])
def test_other_settings_are_new(run, write, row, tmp_path, chat_tokenizer, make_tokenizer, changes):
    file = write("rows.json", [row()])
    before, _ = run(file, tokenizer=chat_tokenizer)
    if frame := changes.pop("frame", None):
        changes["tokenizer"] = make_tokenizer(frame)
    after, _ = run(file, **{"tokenizer": chat_tokenizer, **changes})
    assert len(finished(tmp_path)) == 2
    assert before[0]["input_ids"] != after[0]["input_ids"]


def test_a_cached_dataset_does_not_excuse_an_unknown_task_type(run, write, row):
    file = write("rows.json", [row(task_type=2)])
    run(file)
    with pytest.raises(DatasetError, match="got 2, but the experts have the types 0, 1"):
        run(file, task_types=[0, 1])


def test_two_processes_give_what_one_gives(run, write, row, tmp_path):
    file = write("rows.jsonl", [row(instruction=f"{number}?" * (number % 8)) for number in range(1, 100) if number % 8])
    one, one_report = run(file, max_seq_length=CUT)
    two, two_report = run(file, max_seq_length=CUT, num_proc=2, cache_dir=tmp_path / "second")
    assert one_report.dropped > 0
    assert one.to_list() == two.to_list()
    assert one_report == two_report


def test_more_processes_than_rows(run, write, row):
    assert len(run(write("rows.json", [row()]), num_proc=4)[0]) == 1


def test_after_the_first_bad_row_nothing_is_tokenised(run, write, row, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 2)
    numbers = []
    write_shard = shards.ShardWriter.__call__
    monkeypatch.setattr(
        shards.ShardWriter, "__call__", lambda self, chunk: numbers.append(chunk[0]) or write_shard(self, chunk)
    )
    with pytest.raises(DatasetError, match=r"^2 problems in the data:\n.*line 5, .*\n.*line 9, "):
        run(write("rows.jsonl", [row(output="" if number in (4, 8) else "x") for number in range(20)]))
    assert numbers == [0, 1]
    assert finished(tmp_path) == unfinished(tmp_path) == [], "what was finished is of no use"


def test_the_default_cache_is_the_one_of_datasets(run, write, row, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    run(write("rows.json", [row()]), cache_dir=None)
    assert len(list((tmp_path / "hub" / "loramoe").glob("*/*.arrow"))) == 1


def test_a_broken_row_is_reported_as_by_the_reader(run, write, row):
    file = write("rows.jsonl", [row(), row(output="")])
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 2, field 'output': expected some text") as caught:
        run(file)
    assert caught.value.__cause__ is None


def test_another_failure_of_the_reader_stays_what_it_is(run, write, row, monkeypatch):
    def fail(*_):
        raise MemoryError("too much")
        yield

    monkeypatch.setattr(shards, "locate_rows", fail)
    with pytest.raises(MemoryError, match="too much"):
        run(write("rows.json", [row()]))


def test_no_row_fits(run, write, row, tmp_path):
    file = write("rows.json", [row(), row()])
    with pytest.raises(
        DatasetError, match=r"none of the 2 rows has room .* max_seq_length=6 tokens or more\. Raise max_seq"
    ):
        run(file, max_seq_length=6)
    assert finished(tmp_path) == unfinished(tmp_path) == []
    assert run(file, max_seq_length=7)[0][0]["labels"] == [-100] * 6 + [2 + ord("M") - ord("!")]


@pytest.mark.parametrize(("name", "least"), [("max_seq_length", 2), ("num_proc", 1)])
def test_numbers_out_of_range(run, write, row, name, least):
    value = least - 1
    with pytest.raises(ValueError, match=f"{name} must be at least {least}; got {name}={value}. Raise it."):
        run(write("rows.json", [row()]), **{name: value})


def test_without_the_datasets_library(run, write, row, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match=r"needs the datasets library, which is not installed\. Run: pip install datasets"
    ):
        run(write("rows.json", [row()]))
