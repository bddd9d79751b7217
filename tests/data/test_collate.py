"""Collating: padding on the right that changes no token, no label and no length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramoe.data import IGNORE_INDEX, SftCollator

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def feature(ids, **more):
    return {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]], **more}


@given(rows=st.lists(IDS, min_size=1, max_size=6), pad=st.integers(0, 9), multiple=st.sampled_from([None, 1, 8]))
def test_padding_changes_nothing(rows, pad, multiple):
    features = [feature(ids, task_types=index) for index, ids in enumerate(rows)]
    batch = SftCollator(pad, multiple)(features)
    longest, length = max(map(len, rows)), batch["input_ids"].shape[1]
    assert longest <= length < longest + (multiple or 1)
    assert length % (multiple or 1) == 0
    for index, row in enumerate(features):
        real = len(row["input_ids"])
        assert batch["input_ids"][index].tolist() == row["input_ids"] + [pad] * (length - real)
        assert batch["labels"][index].tolist() == row["labels"] + [IGNORE_INDEX] * (length - real)
        assert batch["attention_mask"][index].tolist() == [1] * real + [0] * (length - real)
    assert batch["task_types"].tolist() == list(range(len(rows)))


def test_shapes_and_dtypes():
    batch = SftCollator(0)([feature([5, 6, 7], task_types=1), feature([5], task_types=0)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 3),
        "attention_mask": (2, 3),
        "labels": (2, 3),
        "task_types": (2,),
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_the_end_of_a_row_stays_visible_when_it_is_also_the_padding():
    batch = SftCollator(pad_token_id=2)([feature([5, 2, 7, 2]), feature([5, 2])])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 7, 2], [-100, 2, -100, -100]]


def test_rows_may_be_tensors():
    ids = torch.tensor([5, 6], dtype=torch.int32)
    batch = SftCollator(0)([{"input_ids": ids, "labels": ids, "task_types": torch.tensor(1)}])
    assert batch["labels"].tolist() == [[5, 6]]
    assert batch["task_types"].tolist() == [1]


def test_without_task_types_there_is_no_such_key():
    assert set(SftCollator(0)([feature([5])])) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("first", [0, 1])
def test_task_types_in_some_rows_only(first):
    features = [feature([5], task_types=1), feature([5])]
    with pytest.raises(
        ValueError, match=r"1 of the 2 rows of a batch have task_types; expected all or none\. Give every row"
    ):
        SftCollator(0)([features[first], features[1 - first]])


def test_labels_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"row 1 of the batch has 2 input_ids and 1 labels; expected the same number\. Give"
    ):
        SftCollator(0)([feature([5]), {"input_ids": [1, 2], "labels": [1]}])


def test_an_empty_batch():
    with pytest.raises(ValueError, match=r"a batch needs at least one row; got none\. Check the sampler"):
        SftCollator(0)([])


def test_a_tokenizer_without_padding_token():
    with pytest.raises(
        ValueError, match=r"pad_token_id must be a token id; got None\. Pass tokenizer\.pad_token_id, or"
    ):
        SftCollator(None)


def test_a_multiple_below_one():
    with pytest.raises(ValueError, match=r"pad_to_multiple_of must be at least 1 or None; got 0\. Leave it out\."):
        SftCollator(0, pad_to_multiple_of=0)
