"""Losses by sample and by type equal a loop over tokens, however samples are laid out."""

from __future__ import annotations

import math

import pytest
import torch

from loramoe.training.metrics import loss_metrics, perplexity, sample_losses


def by_hand(logits: torch.Tensor, labels: list[int]) -> tuple[float, int]:
    """Sum over the learnt tokens of -log softmax, in Python numbers."""
    total, count = 0.0, 0
    for row, label in zip(logits.double()[:-1].tolist(), labels[1:], strict=True):
        if label != -100:
            total += math.log(sum(math.exp(value) for value in row)) - row[label]
            count += 1
    return total, count


SAMPLES = ([-100, 3, 1], [-100, -100, 2, 4, 4], [-100, 0])


def test_padded_and_packed_samples():
    torch.manual_seed(0)
    logits = [torch.randn(len(labels), 7) for labels in SAMPLES]
    expected = [by_hand(row, labels) for row, labels in zip(logits, SAMPLES, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True)
    labels = torch.tensor([row + [-100] * (5 - len(row)) for row in SAMPLES])
    packed = torch.tensor([[label for row in SAMPLES for label in row]])
    for loss_M, tokens_M in (
        sample_losses(padded, labels),
        sample_losses(torch.cat(logits)[None], packed, [len(row) for row in SAMPLES]),
    ):
        assert loss_M.tolist() == pytest.approx([loss for loss, _ in expected], rel=1e-6)
        assert tokens_M.tolist() == [tokens for _, tokens in expected]


def test_metrics_are_over_all_tokens_of_all_processes():
    sums = [{0: (6.0, 3), 1: (1.0, 2)}, {1: (3.0, 2)}]
    metrics = loss_metrics(sums, {1: "knowledge"})
    assert metrics["loss"] == pytest.approx(10 / 7)
    assert metrics["loss/type0"] == pytest.approx(2.0)
    assert metrics["loss/knowledge"] == pytest.approx(1.0)
    assert metrics["perplexity/knowledge"] == pytest.approx(math.e)


def test_a_single_type_has_no_loss_of_its_own():
    assert loss_metrics([{1: (2.0, 2)}], {}) == {"loss": 1.0, "perplexity": math.e}
    assert loss_metrics([{}], {}) == {}


def test_perplexity_of_a_diverged_model_is_infinite():
    assert perplexity(1e4) == math.inf
