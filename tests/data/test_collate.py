"""Batches: padding and packing change no token, no label and no length; rows are filled with each sample once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loramoe.data import IGNORE_INDEX, PackedCollator, PackedSamples, SftCollator, pack

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=12)
COLLATORS = pytest.mark.parametrize("collate", [SftCollator(0), PackedCollator()])


def feature(ids, **more):
    return {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]], **more}


@settings(deadline=None)
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


@settings(deadline=None)
@given(rows=st.lists(IDS, min_size=1, max_size=6), cut=st.integers(0, 6))
def test_every_sample_is_found_again_in_a_packed_row(rows, cut):
    features = [{"input_ids": ids, "labels": ids, "task_types": index} for index, ids in enumerate(rows)]
    batch = PackedCollator()(features)
    bounds = batch["cu_seq_lens_q"].tolist()
    assert batch["input_ids"].shape == (1, bounds[-1])
    assert batch["sample_lengths"] == [len(ids) for ids in rows]
    for ids, begin, end in zip(rows, bounds, bounds[1:], strict=False):
        assert batch["input_ids"][0, begin:end].tolist() == ids
        assert batch["position_ids"][0, begin:end].tolist() == list(range(len(ids)))
        assert batch["labels"][0, begin:end].tolist() == [IGNORE_INDEX, *ids[1:]]
    assert batch["max_length_q"] == batch["max_length_k"] == max(map(len, rows))
    assert batch["task_types"].tolist() == list(range(len(rows)))
    assert batch["use_cache"] is False  # or transformers lets the samples see each other
    assert "attention_mask" not in batch
    assert batch["cu_seq_lens_q"].dtype == batch["cu_seq_lens_k"].dtype == torch.int32
    lists = [part for part in (features[:cut], features[cut:]) if part]
    of_lists = PackedCollator()(lists)
    assert all(torch.equal(torch.as_tensor(batch[name]), torch.as_tensor(of_lists[name])) for name in batch)


@COLLATORS
def test_samples_may_be_tensors_and_without_task_types(collate):
    ids = torch.tensor([5, 6], dtype=torch.int32)
    batch = collate([{"input_ids": ids, "labels": ids, "length": 2}])
    assert batch["input_ids"].tolist() == [[5, 6]]
    assert not {"task_types", "length"} & set(batch)


@COLLATORS
def test_a_batch_with_some_task_types_is_refused(collate):
    with pytest.raises(ValueError, match="1 of the 2 samples"):
        collate([feature([5]), feature([5], task_types=1)])


def test_a_padding_token_is_needed():
    with pytest.raises(ValueError, match="got None"):
        SftCollator(None)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), seed=st.integers(0, 3))
def test_rows_hold_every_sample_once_and_no_more_than_they_may(lengths, seed):
    rows = pack(np.array(lengths, dtype=np.int64), 20, seed)
    assert sorted(index for row in rows for index in row.tolist()) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= 20 for total in sums)
    assert sum(total <= 10 for total in sums) <= 1  # two such rows would fit into one


def test_rows_are_full_and_their_order_is_the_seeds():
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.7, 2_000).clip(1, 512).astype(np.int64)
    rows, again, other = ([row.tolist() for row in pack(lengths, 1024, seed)] for seed in (0, 0, 1))
    assert lengths.sum() / (len(rows) * 1024) > 0.97
    assert rows == again != other


def test_items_are_lists_of_samples(write, row, run):
    samples, _ = run(write("rows.json", [row(output="x" * number, task_type=number) for number in range(1, 30)]))
    packed = PackedSamples(samples, 64)
    items = [packed[index] for index in range(len(packed))]
    assert sorted(sample["task_types"] for item in items for sample in item) == list(range(1, 30))
    assert packed.lengths == [sum(len(sample["input_ids"]) for sample in item) for item in items]
    assert max(packed.lengths) <= 64
    assert PackedCollator()(items)["input_ids"].shape == (1, sum(packed.lengths))
