"""Splits: which path or share becomes training and validation data."""

from __future__ import annotations

import re

import pytest

from loramoe.data import DatasetError, load_splits


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads splits with a cache of its own."""

    def splits(**options):
        return load_splits(tokenizer, max_seq_length=64, cache_dir=tmp_path / "cache", **options)

    return splits


@pytest.fixture
def train(write, row):
    """A training file of 40 rows, each with its number as the task type."""
    return write("train/train.json", [row(task_type=number) for number in range(40)])


@pytest.mark.parametrize("name", ["dataset_dir", "train_file"])
def test_training_data_alone(load, train, name):
    for path in (train, train.parent):
        splits = load(**{name: path})
        assert splits.train["task_types"][:] == list(range(40))
        assert splits.train_report.rows == 40
        assert splits.validation is splits.validation_report is None


@pytest.mark.parametrize("percentage", [None, 0])
def test_a_validation_file(load, train, write, row, percentage):
    file = write("test.json", [row(task_type=number) for number in (7, 8)])
    splits = load(train_file=train, validation_file=file, validation_split_percentage=percentage)
    assert len(splits.train) == 40
    assert splits.validation["task_types"][:] == [7, 8]
    assert splits.validation_report.rows == 2


def test_a_share_is_set_aside(load, train):
    splits = load(train_file=train, validation_split_percentage=5)
    assert len(splits.validation) == 2
    train_rows, held_out = splits.train["task_types"][:], splits.validation["task_types"][:]
    assert sorted(train_rows + held_out) == list(range(40))
    assert train_rows == sorted(train_rows), "the order of the file is kept"
    assert (splits.train_report.rows, splits.validation_report) == (40, None)


def test_the_share_depends_on_the_seed_alone(load, train):
    def drawn(seed):
        return load(train_file=train, validation_split_percentage=25, seed=seed).validation["task_types"][:]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(("percentage", "held_out"), [(1, 1), (99, 2)])
def test_both_parts_have_a_row(load, write, row, percentage, held_out):
    splits = load(train_file=write("rows.json", [row()] * 3), validation_split_percentage=percentage)
    assert (len(splits.train), len(splits.validation)) == (3 - held_out, held_out)


def test_one_row_cannot_be_divided(load, write, row):
    with pytest.raises(DatasetError, match=r"=5 needs at least 2 rows to divide; got 1\. Add rows, or set it to 0\."):
        load(train_file=write("rows.json", [row()]), validation_split_percentage=5)


@pytest.mark.parametrize("percentage", [0.05, 100, -1])
def test_a_share_out_of_range(load, train, percentage):
    message = f"validation_split_percentage must be 0, or from 1 to 99; got {percentage}. For 5 per cent, write 5."
    with pytest.raises(ValueError, match=re.escape(message)):
        load(train_file=train, validation_split_percentage=percentage)


def test_validation_data_named_twice(load, train):
    message = (
        r"validation_file='x\.json' and validation_split_percentage=5 both name the validation data\. Set only one"
    )
    with pytest.raises(ValueError, match=message):
        load(train_file=train, validation_file="x.json", validation_split_percentage=5)


def test_training_data_named_twice(load):
    message = r"dataset_dir and train_file both name .* dataset_dir='a' and train_file='b'\. Set only one\."
    with pytest.raises(ValueError, match=message):
        load(dataset_dir="a", train_file="b")


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_training_data(load, nothing):
    with pytest.raises(ValueError, match=r"no training data is named\. Set dataset_dir .* or train_file"):
        load(dataset_dir=nothing)


def test_a_file_cannot_serve_both_purposes(load, train):
    with pytest.raises(DatasetError, match=r"train\.json is training data and validation data at once, .* Move it"):
        load(dataset_dir=train.parent, validation_file=train.parent / ".." / "train" / "train.json")
