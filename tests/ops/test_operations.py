"""The number of operations that one layer adds: it bounds the time of small layers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operations import OperationCounter, operations
from loramoe.ops import add_fused


@pytest.mark.parametrize(("dropout", "most"), [(0.0, 20), (0.05, 33)])
def test_operations_of_fused(dropout: float, most: int) -> None:
    names = operations("fused", dropout)
    assert len(names) <= most, names


@pytest.mark.parametrize(
    ("tokens", "dtype", "most", "products"),
    [(300, "float32", 5, 1), (2, "float32", 7, 3), (300, "bfloat16", 11, 3)],  # addmm_ is not counted as a product
    ids=["joint", "few compute eager", "experts in bfloat16"],
)
def test_operations_of_inference(tokens: int, dtype: str, most: int, products: int) -> None:
    like = {"dtype": getattr(torch, dtype)}
    y, x, router, A, B = (torch.randn(*shape, **like) for shape in [(tokens, 6), (tokens, 8), (4, 8), (8, 8), (6, 8)])
    with torch.no_grad(), OperationCounter() as counter:
        add_fused(y, x, router, A, B, 2.0)
    assert counter.names.count("aten.mm.default") == products, counter.names
    assert len(counter.names) <= most, counter.names


def test_counts_include_products_and_exclude_views() -> None:
    names = operations("lora", 0.0)
    assert names.count("aten.mm.default") == 8  # forward: frozen layer, A, B; backward: two for A and B, one for x
    assert len(names) == 12  # and the scale twice, and both sums
