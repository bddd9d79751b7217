"""The dropout mask: its probability, its independence, its seed."""

from __future__ import annotations

import pytest
import torch

from loramoe.ops.fused import draw_seed, dropout_mask, keep_prob


@pytest.mark.parametrize("p", [0.05, 0.9])
def test_share_of_kept_elements(p: float) -> None:
    mask = dropout_mask(torch.empty(1000, 1000), p, seed=7, dtype=torch.float64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / 1e6) ** 0.5)
    assert keep_prob(p) == pytest.approx(1 - p, abs=2**-17)


def test_elements_are_dropped_independently() -> None:
    mask = dropout_mask(torch.empty(4000, 256), 0.5, seed=3, dtype=torch.float64)
    correlations = torch.corrcoef(mask.T).fill_diagonal_(0)  # of columns; four neighbours share one 64-bit draw
    assert correlations.abs().max() < 6 / 4000**0.5


@pytest.mark.parametrize("shape", [(), (7,), (0, 3)])
def test_equal_seeds_give_equal_masks_in_any_shape(shape: tuple[int, ...]) -> None:
    first, second, other = (dropout_mask(torch.empty(shape), 0.5, seed, dtype=torch.bfloat16) for seed in (1, 1, 3))
    assert (first.shape, first.dtype) == (shape, torch.bfloat16)
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (0 in shape)


def test_seeds_obey_manual_seed_and_ignore_the_default_device() -> None:
    torch.manual_seed(5)
    first = [draw_seed() for _ in range(100)]
    torch.manual_seed(5)
    with torch.device("meta"):
        assert first == [draw_seed() for _ in range(100)]
    assert len(set(first)) == 100


def test_dropout_close_to_one_keeps_something() -> None:
    assert keep_prob(1 - 1e-9) == 2**-16


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_probability_out_of_range_is_an_error(p: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout must be at least 0 and below 1; got {p}\. Set lora_dropout=0"):
        keep_prob(p)
