"""The data of a run: mixed, divided, packed or streamed, with a fingerprint of what decides it."""

from __future__ import annotations

import logging

import pytest
from torch.utils.data import DataLoader

from loramoe.data import DatasetError, DataSource, PackedSamples, SftCollator, evenly_spaced
from tests.data.conftest import CHAT


@pytest.fixture
def numbered(write, row):
    """Writes a file of samples whose task types are numbers from `start`."""

    def make(name, count, start=0, **changes):
        return write(name, [row(task_type=start + number, **changes) for number in range(count)])

    return make


def types(dataset):
    return [sample["task_types"] for sample in dataset]


def test_data_sets_follow_each_other(load, numbered):
    splits = load(numbered("a.json", 3), numbered("b.jsonl", 3, start=3))
    assert types(splits.train) == [0, 1, 2, 3, 4, 5]
    assert (splits.report.samples, splits.report.task_types) == (6, dict.fromkeys(range(6), 1))
    assert splits.validation == splits.validation_reports == {}


@pytest.mark.parametrize("streaming", [False, True])
def test_weights_are_shares_of_the_mix(load, numbered, streaming):
    sources = [
        DataSource(str(numbered("a.json", 200)), task_type=0, weight=6),
        DataSource(str(numbered("b.json", 25)), task_type=1, weight=2),
    ]
    found, again, other = (types(load(*sources, streaming=streaming, seed=seed).train) for seed in (42, 42, 43))
    assert len(found) > 250  # of the first, every sample is there; of the second, some twice
    assert found[:250].count(1) == pytest.approx(62, abs=21)
    assert found == again != other


@pytest.mark.parametrize("weights", [(None, None), (1, 2)])
def test_a_share_is_set_aside(load, numbered, weights):
    files = numbered("a.json", 30), numbered("b.json", 10, start=30)
    sources = [DataSource(str(file), weight=weight) for file, weight in zip(files, weights, strict=True)]
    train, held_out, other = [], [], []
    for found, seed in ((held_out, 42), (other, 43)):
        splits = load(*sources, validation_percentage=25, seed=seed)
        train, found[:] = types(splits.train), types(splits.validation["validation"])
        assert len(found) == 10
        assert set(train).isdisjoint(found)
        assert set(train).union(found) == set(range(40))
        assert sorted(found) == found
    assert held_out != other
    with pytest.raises(DatasetError, match="at least 2"):
        load(numbered("one.json", 1), validation_percentage=5)


def test_validation_sets_have_names(load, numbered):
    files = numbered("a.json", 2), numbered("held.jsonl.gz", 1), DataSource(str(numbered("c.json", 1)), name="facts")
    splits = load(files[0], validation=files[1:])
    assert {name: len(dataset) for name, dataset in splits.validation.items()} == {"held": 1, "facts": 1}
    assert splits.validation_reports["held"].samples == 1
    assert list(load(files[0], validation=files[1:2]).validation) == ["validation"]
    with pytest.raises(DatasetError, match="'facts'"):
        load(files[0], validation=[files[2], files[2]])


def test_rows_are_filled(load, numbered):
    splits = load(numbered("a.json", 40), packing=True, validation_percentage=5)
    assert isinstance(splits.train, PackedSamples)
    assert sum(map(len, (splits.train[index] for index in range(len(splits.train))))) == 38
    assert len(splits.validation["validation"]) == 2


class TestStreaming:
    """A stream gives the samples of the stored data; what cannot be rendered is skipped."""

    def test_samples_are_those_of_the_stored_data(self, load, numbered):
        folder, _ = [numbered(f"rows/{name}", 5, start=start).parent for name, start in (("a.json", 0), ("b.csv", 5))]
        stored, stream = load(folder), load(folder, streaming=True)
        assert sorted(stream.train, key=lambda one: one["task_types"]) == stored.train.to_list()
        assert stream.report.task_types == stored.report.task_types
        assert types(stream.train) != types(stored.train)  # in another order

    def test_a_loader_with_workers_gives_each_sample_once(self, load, numbered):
        folder, *_ = [numbered(f"rows/{number}.json", 5, start=5 * number).parent for number in range(3)]
        batches = DataLoader(load(folder, streaming=True).train, 4, num_workers=2, collate_fn=SftCollator(0))
        assert sorted(kind for batch in batches for kind in batch["task_types"].tolist()) == list(range(15))

    def test_faults_of_samples_come_before_training(self, load, write, row):
        with pytest.raises(DatasetError, match=r"line 2, field 'output'"):
            load(write("rows.jsonl", [row(), row(output="")]), streaming=True)

    def test_what_cannot_be_rendered_is_skipped(self, load, write, row, make_tokenizer, caplog):
        refuse = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
        file = write("rows.jsonl", [row(), *[row(instruction="no")] * 2, row()])
        splits = load(file, streaming=True, template="chat", tokenizer=make_tokenizer(chat_template=refuse + CHAT))
        with caplog.at_level(logging.WARNING, "loramoe"):
            assert len(list(splits.train)) == 2
        assert caplog.text.count("so far") == 2
        assert "rows.jsonl, line 3: " in caplog.text

    def test_max_samples_of_all_files_together(self, load, numbered):
        folder, *_ = [numbered(f"rows/{number}.json", 3, start=3 * number).parent for number in range(3)]
        stream = load(DataSource(str(folder), max_samples=4), streaming=True)
        assert sorted(types(stream.train)) == [0, 1, 2, 3]
        assert stream.report.samples == 4

    @pytest.mark.parametrize("changes", [{"packing": True}, {"validation_percentage": 5}])
    def test_what_needs_all_samples_is_refused(self, load, numbered, changes):
        with pytest.raises(ValueError, match=next(iter(changes))):
            load(numbered("a.json", 9), streaming=True, **changes)


class TestFingerprint:
    """Equal for equal training samples in equal rows, wherever they lie."""

    @pytest.fixture
    def fingerprint(self, load, numbered):
        files = [numbered("a.json", 9), numbered("b.json", 9)]

        def make(first=None, weights=(None, None), **changes):
            pairs = zip([first or files[0], files[1]], weights, strict=True)
            return load(*(DataSource(str(file), weight=weight) for file, weight in pairs), **changes).fingerprint

        return make

    def test_what_does_not_count(self, fingerprint, numbered, tmp_path):
        assert fingerprint() == fingerprint(numbered("other/name.json", 9), seed=7, cache_dir=tmp_path / "other")

    @pytest.mark.parametrize("changes", [{"max_seq_length": 63}, {"streaming": True}])
    def test_other_settings(self, fingerprint, changes):
        assert fingerprint(**changes) != fingerprint()

    @pytest.mark.parametrize("changes", [{"weights": (1, 2)}, {"validation_percentage": 20}, {"packing": True}])
    def test_other_settings_in_which_the_seed_counts(self, fingerprint, changes):
        assert len({fingerprint(), fingerprint(**changes), fingerprint(**changes, seed=7)}) == 3

    def test_other_content(self, fingerprint, numbered):
        assert fingerprint(numbered("a.json", 9, output="Not me.")) != fingerprint(numbered("a.json", 9))


def test_evenly_spaced(load, numbered):
    train = load(numbered("a.json", 5)).train
    assert [types(evenly_spaced(train, most)) for most in (None, 3, 1)] == [[0, 1, 2, 3, 4], [0, 2, 4], [0]]
