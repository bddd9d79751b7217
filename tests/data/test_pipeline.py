"""Tokenising a data set: results are cached by content, faults have a place, a data set of the hub is one of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from dataclasses import replace

import datasets
import pytest
from tokenizers import AddedToken
from torch.utils.data import DataLoader

from loramoe.data import DatasetError, DataSource, SftCollator, pipeline
from loramoe.data.pipeline import Tokeniser
from loramoe.data.templates import tokenizer_hash
from tests.data.conftest import CHAT

COLUMNS = ["input_ids", "labels", "task_types", "length"]


@pytest.fixture
def rows(row):
    return [row(output="x" * (number % 7 + 1), input="é" * (number % 2), task_type=number % 3) for number in range(50)]


@pytest.fixture
def expected(run, write, rows):
    return run(write("expected.json", rows))[0].to_list()


def test_a_sample(run, write, row):
    dataset, report = run(write("rows.json", [row(input="é", task_type=3)]))
    (sample,) = dataset.to_list()
    prompt, target = len(b"Who?\n\xc3\xa9") + 2, len(b"Me.") + 1
    assert list(sample) == COLUMNS
    assert (sample["input_ids"][0], sample["input_ids"][-1], sample["task_types"]) == (0, 1, 3)
    assert sample["labels"] == [-100] * prompt + sample["input_ids"][prompt:]
    assert sample["length"] == len(sample["input_ids"]) == prompt + target == report.tokens == report.longest
    assert report.max_token_id == max(sample["input_ids"])


def test_the_number_of_processes_and_the_kind_of_file_change_nothing(run, write, rows, expected):
    dataset, report = run(write("rows.csv", rows), num_proc=2)
    assert dataset.to_list() == expected
    assert (report.samples, report.kept, report.task_types) == (50, 50, {0: 17, 1: 17, 2: 16})


def test_the_first_samples_only(write, rows, expected, tokenizer, tmp_path):
    write("rows/a.json", rows[:8])
    source = DataSource(str(write("rows/b.jsonl", rows[8:]).parent), max_samples=10)
    dataset, report, _ = Tokeniser(tokenizer, cache_dir=tmp_path / "cache").store(source)
    assert dataset.to_list() == expected[:10]
    assert report.samples == 10


def test_what_is_cut_and_dropped_and_special(run, write, row, chat_tokenizer):
    rows = [row(), row(output="x" * 99, task_type=0), row(instruction="y" * 99), row(instruction="</s>")]
    dataset, report = run(write("rows.json", rows), max_seq_length=40)
    assert (report.samples, report.kept, report.cut, report.special) == (4, 3, 1, 0)
    assert (report.tokens, report.task_types) == (sum(dataset["length"]), {0: 1, 1: 2})
    assert dataset[1]["length"] == len(dataset[1]["labels"]) == 40
    words = str(report)
    assert all(text in words for text in ("type 0: 1", "type 1: 2", "dropped", "max_seq_length=40: 1"))
    assert run(write("rows.json", rows), tokenizer=chat_tokenizer, template="chat")[1].special == 1


def test_no_sample_fits(run, write, row):
    file = write("rows.json", [row(), row()])
    with pytest.raises(DatasetError, match=r"none of the 2 samples .*max_seq_length=6"):
        run(file, max_seq_length=6)
    assert run(file, max_seq_length=7)[1].kept == 2


def test_a_fault_has_a_place(run, write, rows, row):
    file = write("rows.jsonl", [*rows, row(task_type=7)])
    with pytest.raises(DatasetError, match=f"{re.escape(str(file))}, line 51, .*types 0, 1, 2") as caught:
        run(file, task_types=[0, 1, 2])
    assert caught.value.__suppress_context__  # no traceback of the library before the message


def test_samples_that_the_template_refuses_have_a_place(run, write, row, make_tokenizer):
    refuse = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
    tokenizer = make_tokenizer(chat_template=refuse + CHAT)
    file = write("rows.jsonl", [row(), row(instruction="no"), row(), row(instruction="no")])
    with pytest.raises(DatasetError, match=r"rows\.jsonl, line 2: .*not this \(2 samples"):
        run(file, tokenizer=tokenizer, template="chat")


def test_a_full_disk_is_no_fault_of_the_data(run, write, row, monkeypatch):
    def full(*_, **__):
        raise datasets.exceptions.DatasetGenerationError from OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "from_generator", full)
    with pytest.raises(OSError, match="No space left"):
        run(write("rows.jsonl", [row()]))


class TestCache:
    """A finished data set is found again as long as nothing that decides its tokens has changed."""

    @pytest.fixture
    def encoded(self, monkeypatch):
        """Counts the samples that are encoded."""
        counts = []
        encode = pipeline.encode_batch

        def count(batch, **more):
            counts.append(len(batch["where"]))
            return encode(batch, **more)

        monkeypatch.setattr(pipeline, "encode_batch", count)
        return counts

    def test_found_again_wherever_it_lies(self, run, write, rows, tmp_path, encoded):
        file = write("rows.jsonl", rows)
        first, report = run(file)
        again, same = run(file.rename(tmp_path / "other.jsonl"))
        assert (again.to_list(), same, encoded) == (first.to_list(), report, [50])

    @pytest.mark.parametrize(
        "changes", [{"max_seq_length": 63}, {"task_types": [0, 1, 2]}, {"default_task_type": 0}, {"template": "chat"}]
    )
    def test_other_settings_are_other_data(self, run, write, rows, chat_tokenizer, encoded, changes):
        file = write("rows.json", rows)
        run(file, tokenizer=chat_tokenizer)
        run(file, tokenizer=chat_tokenizer, **changes)
        assert encoded == [50, 50]

    def test_an_edit_of_the_same_size_and_date_is_seen(self, run, write, row):
        file = write("rows.jsonl", [row(output="abc")])
        status = file.stat()
        first = run(file)[0]["input_ids"][0]
        write("rows.jsonl", [row(output="abd")])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert run(file)[0]["input_ids"][0] != first

    def test_a_tokenizer_is_its_definition(self, make_tokenizer):
        one, other = make_tokenizer(), make_tokenizer()
        other("x" * 9, max_length=5, truncation=True)  # which leaves its mark in the backend
        assert tokenizer_hash(one) == tokenizer_hash(other)
        other.add_tokens(AddedToken("<new>"))
        hashes = {tokenizer_hash(make_tokenizer(chat_template=text)) for text in ("a", "b")}
        assert len({tokenizer_hash(one), tokenizer_hash(other), *hashes}) == 4

    def test_two_processes_at_once(self, run, write, rows, expected, tmp_path):
        file, ready = write("rows.jsonl", rows), multiprocessing.get_context("fork").Barrier(2)

        def work():
            ready.wait()
            (tmp_path / f"{os.getpid()}.txt").write_text(json.dumps(run(file)[0].to_list()))

        workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [json.loads(file.read_text()) for file in tmp_path.glob("*.txt")] == [expected] * 2


class TestHub:
    """A data set of the hub; a stored one stands for it here."""

    @pytest.fixture
    def hub(self, monkeypatch, rows):
        samples = datasets.Dataset.from_list(rows)

        def load(path, subset, *, split, revision, streaming):
            if (path, subset, split, revision) != ("me/rows", "all", "half", "v1"):
                raise ConnectionError("no such data set")
            return samples.to_iterable_dataset(num_shards=2) if streaming else samples

        monkeypatch.setattr(datasets, "load_dataset", load)
        return DataSource("me/rows", subset="all", split="half", revision="v1")

    def test_it_is_tokenised(self, hub, tokenizer, expected, tmp_path):
        assert Tokeniser(tokenizer, cache_dir=tmp_path / "cache").store(hub)[0].to_list() == expected

    def test_a_stream_skips_faulty_samples(self, hub, tokenizer, expected, caplog):
        stream, report, _ = Tokeniser(tokenizer, task_types=[0, 1]).stream(replace(hub, max_samples=9))
        assert list(stream) == [one for one in expected[:9] if one["task_types"] != 2]
        assert "unknown length" in str(report)
        assert len(re.findall(r"skipped \(\d+ so far\): me/rows, .*, field 'task_type'", caplog.text)) == 3

    def test_workers_of_a_loader_share_a_stream(self, hub, tokenizer, expected):
        stream, *_ = Tokeniser(tokenizer).stream(hub)
        batches = DataLoader(stream, 4, num_workers=2, collate_fn=SftCollator(0))
        assert sum(len(batch["task_types"]) for batch in batches) == len(expected)

    def test_a_fault_has_a_place(self, hub, tokenizer, tmp_path):
        tokeniser = Tokeniser(tokenizer, task_types=[0, 1], cache_dir=tmp_path / "cache")
        with pytest.raises(DatasetError, match=r"me/rows, row 3, field 'task_type': .*\(16 samples"):
            tokeniser.store(hub)

    def test_one_that_is_not_there(self, hub, tokenizer):
        with pytest.raises(DatasetError, match=r"me/other .*no such data set"):
            Tokeniser(tokenizer).store(replace(hub, path="me/other"))
