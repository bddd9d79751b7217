"""Dropout from a seed: as likely as asked, the same whenever asked, and under the user's seed."""

from __future__ import annotations

import pytest
import torch

from loramoe.mixture.dropout import draw_seed, dropout_mask, kept_share


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_share_that_is_kept(p: float) -> None:
    mask = dropout_mask(torch.empty(1000, 1000), p, seed=7, dtype=torch.float64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    deviation = (p * (1 - p) / 1e6) ** 0.5
    assert mask.mean().item() == pytest.approx(1 - p, abs=5 * deviation)
    assert kept_share(p) == pytest.approx(1 - p, abs=2**-17)


def test_elements_are_dropped_independently() -> None:
    mask = dropout_mask(torch.empty(4000, 256), 0.5, seed=3, dtype=torch.float64)
    correlations = torch.corrcoef(mask.T).fill_diagonal_(0)  # of columns; four neighbours come from one draw
    assert correlations.abs().max() < 6 / 4000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0, 3), (3, 5, 2)])
def test_any_shape_and_the_same_for_the_same_seed(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    mask = dropout_mask(x, 0.5, seed=1, dtype=torch.bfloat16)
    assert mask.shape == shape
    assert mask.dtype is torch.bfloat16
    assert torch.equal(mask, dropout_mask(x, 0.5, seed=1, dtype=torch.bfloat16))


def test_another_seed_gives_another_mask() -> None:
    x = torch.empty(100)
    masks = [dropout_mask(x, 0.5, seed, torch.float32) for seed in range(2)]
    assert not torch.equal(*masks)


def test_seeds_obey_the_seed_of_torch() -> None:
    torch.manual_seed(5)
    first = [draw_seed() for _ in range(3)]
    torch.manual_seed(5)
    assert first == [draw_seed() for _ in range(3)]
    assert len(set(first)) == 3


def test_a_device_without_numbers() -> None:
    assert dropout_mask(torch.empty(2, 3, device="meta"), 0.5, seed=1, dtype=torch.float16).shape == (2, 3)


def test_seeds_are_drawn_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert isinstance(draw_seed(), int)


def test_almost_certain_dropout_keeps_something() -> None:
    assert kept_share(1 - 1e-9) == 2**-16


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_what_is_no_probability_below_one(p: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout must be at least 0 and below 1; got {p}\. Set lora_dropout=0"):
        kept_share(p)
