"""Packing: every sample's tokens once, in one row, with bounds that everybody reads alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramoe.data import IGNORE_INDEX, PackedCollator

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def feature(ids, **more):
    return {"input_ids": ids, "labels": list(ids), **more}


@given(rows=st.lists(IDS, min_size=1, max_size=6))
def test_every_sample_is_found_again_between_its_bounds(rows):
    batch = PackedCollator()([feature(ids, task_types=index) for index, ids in enumerate(rows)])
    bounds = batch["cu_seq_lens_q"].tolist()
    assert batch["input_ids"].shape == (1, bounds[-1])
    assert len(bounds) == len(rows) + 1
    for ids, begin, end in zip(rows, bounds, bounds[1:], strict=False):
        assert batch["input_ids"][0, begin:end].tolist() == ids
        assert batch["position_ids"][0, begin:end].tolist() == list(range(len(ids)))
        assert batch["labels"][0, begin:end].tolist() == [IGNORE_INDEX, *ids[1:]]
    assert batch["max_length_q"] == batch["max_length_k"] == max(map(len, rows))
    assert torch.equal(batch["cu_seq_lens_q"], batch["cu_seq_lens_k"])
    assert batch["task_types"].tolist() == list(range(len(rows)))


def test_what_a_batch_holds():
    batch = PackedCollator()([feature([5, 6, 7], task_types=1), feature([5], task_types=0)])
    dtypes = {name: value.dtype for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert dtypes == {
        **dict.fromkeys(("input_ids", "labels", "position_ids", "task_types"), torch.int64),
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.int32),
    }
    assert batch["use_cache"] is False  # or transformers lets the samples see each other
    assert "attention_mask" not in batch


def test_rows_may_be_tensors_and_without_task_types():
    ids = torch.tensor([5, 6], dtype=torch.int32)
    batch = PackedCollator()([{"input_ids": ids, "labels": ids}])
    assert batch["input_ids"].tolist() == [[5, 6]]
    assert "task_types" not in batch


def test_a_sample_without_tokens():
    with pytest.raises(ValueError, match=r"row 1 of the batch has no tokens; expected at least one\. Remove the row"):
        PackedCollator()([feature([5]), feature([])])


def test_the_checks_of_the_padding_collator():
    with pytest.raises(ValueError, match="a batch needs at least one row; got none"):
        PackedCollator()([])
    with pytest.raises(ValueError, match="1 of the 2 rows of a batch have task_types"):
        PackedCollator()([feature([5], task_types=1), feature([5])])
