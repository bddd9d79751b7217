"""The number of operations that one layer adds: it bounds the time of small layers."""

from __future__ import annotations

import pytest

from benchmarks.operations import operations


@pytest.mark.parametrize(("dropout", "bound"), [(0.0, 24), (0.05, 42)])
def test_operations_of_fused(dropout: float, bound: int) -> None:
    names = operations("fused", dropout)
    assert len(names) <= bound, names


def test_counts_include_products_and_exclude_views() -> None:
    names = operations("lora", 0.0)
    assert names.count("aten.mm.default") == 8  # forward: frozen layer, A, B; backward: two for A and B, one for x
    assert len(names) == 12  # and the scale twice, and both sums
