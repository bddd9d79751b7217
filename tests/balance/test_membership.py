"""Which token belongs to which sample: padded rows, rows of several samples, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramoe.balance.constraint import positions_as_samples, rows_as_samples

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def positions(rows: list[list[int]]) -> torch.Tensor:
    """Position ids of rows of equal length, each given by the lengths of its samples."""
    return torch.tensor([[p for length in row for p in range(length)] for row in rows])


@given(lengths=LENGTHS, rows=st.integers(1, 3), flat=st.booleans(), kind=st.sampled_from(["mean", "sum"]))
def test_importance_of_rows_with_several_samples(lengths: list[int], rows: int, flat: bool, kind: str) -> None:
    M, S = rows * len(lengths), sum(lengths)
    samples = positions_as_samples(positions([lengths] * rows), M)
    gates = torch.rand(rows, S, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(S))
    each = [sample for row in gates for sample in row.split(lengths)]
    expected = torch.stack([sample.mean(0) if kind == "mean" else sample.sum(0) for sample in each])
    got = samples.importance(gates.flatten(0, 1) if flat else gates, kind)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    assert samples.tokens_M.tolist() == lengths * rows
    assert int(samples.started_samples) == M


def test_a_large_padded_batch_needs_no_matrix_of_samples_times_tokens() -> None:
    samples = rows_as_samples(torch.ones(64, 4096))
    assert samples.W.numel() == 64 * 4096


@given(lengths=LENGTHS, padding=st.integers(0, 4), left=st.booleans())
def test_padding_never_counts(lengths: list[int], padding: int, left: bool) -> None:
    S = max(lengths) + padding
    mask = torch.arange(S) < torch.tensor(lengths).unsqueeze(-1)
    mask = mask.flip(-1) if left else mask
    gates = torch.rand(len(lengths), S, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(S))
    expected = torch.stack([row[real].mean(0) for row, real in zip(gates, mask, strict=True)])
    torch.testing.assert_close(rows_as_samples(mask).importance(gates), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(5,), (3, 2)])
def test_gates_of_other_tokens_are_not_covered(shape: tuple[int, ...]) -> None:
    samples, gates = rows_as_samples(torch.ones(2, 3)), torch.ones(*shape, 4)
    assert samples.covers(torch.ones(2, 3, 4))
    assert samples.covers(torch.ones(6, 4))
    assert not samples.covers(gates)
    assert f"the batch has [2, 3] = 6, not {list(shape)}" in samples.token_mismatch_message("up_proj", gates)
