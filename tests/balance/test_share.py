"""The share of an optimizer step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from loramoe.balance.constraint import balance_loss, share_of_step


@pytest.mark.parametrize("items", [20, torch.tensor(20)])
def test_share_of_step(items: int | Tensor) -> None:
    labels = torch.tensor([[5, 5, 5, -100], [-100, 5, 5, 5]])
    for skips_first, counted in ((True, 5), (False, 6)):
        assert share_of_step({"labels": labels, "num_items_in_batch": items}, skips_first) == counted / 20
        assert share_of_step({"shift_labels": labels, "num_items_in_batch": items}, skips_first) == 6 / 20
        assert share_of_step({"start_positions": labels[0], "num_items_in_batch": items}, skips_first) == 3 / 20
        assert share_of_step({"labels": labels}, skips_first) == 1


def test_items_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_items_in_batch=20 was given without labels.* Pass labels too"):
        share_of_step({"num_items_in_batch": 20}, True)


@pytest.mark.parametrize("skips_first", [True, False])
def test_balance_loss_is_the_constraint_times_its_share(skips_first: bool) -> None:
    outputs = CausalLMOutput(logits=torch.zeros(2, 5, 7))
    assert balance_loss(outputs, torch.ones(2, 5), 20) == 0
    outputs |= {"balance_loss": torch.tensor(0.5), "skips_first_label": skips_first}
    assert balance_loss(outputs, torch.ones(2, 5), 20) == 0.5 * (8 if skips_first else 10) / 20
    assert balance_loss(outputs, torch.ones(2, 5)) == 0.5
