"""Memory by known answers: graphs and steps whose bytes can be counted on paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.memory import peak_bytes, saved_bytes

CPU = torch.device("cpu")
FLOAT = 4


def test_a_linear_saves_its_input_and_not_its_weight() -> None:
    linear, x = nn.Linear(10, 20), torch.randn(5, 10, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear.parameters()) == 5 * 10 * FLOAT


def test_a_frozen_linear_saves_nothing() -> None:
    linear, x = nn.Linear(10, 20).requires_grad_(False), torch.randn(5, 10, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear.parameters()) == 0


def test_a_storage_counts_once_and_whole() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 6 * 4 * FLOAT
    assert saved_bytes(lambda: x[:2] * x[:2]) == 6 * 4 * FLOAT


def test_two_storages_that_follow_each_other_at_one_address_both_count() -> None:
    def forward() -> torch.Tensor:
        x = torch.ones(1000, requires_grad=True)
        return (x.exp() + 1).exp()

    assert saved_bytes(forward) == 2 * 1000 * FLOAT


def test_what_a_function_of_ones_own_saves_counts() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x.clone(), x.clone())
            return x**2

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad

    assert saved_bytes(lambda: Square.apply(torch.ones(7, requires_grad=True))) == 2 * 7 * FLOAT


def test_peak_is_the_most_alive_at_one_moment() -> None:
    def step() -> None:
        a = torch.empty(1000)
        b = torch.empty(500)
        del a
        c = torch.empty(200)
        del b, c

    assert peak_bytes(step, CPU) == pytest.approx(1500 * FLOAT, abs=64)


def test_what_was_there_before_a_step_does_not_count() -> None:
    kept = torch.empty(10_000)
    kept.fill_(0)  # touched before, as the weights of a model are
    assert 0 < peak_bytes(lambda: kept.copy_(kept.sum()), CPU) < 1000
