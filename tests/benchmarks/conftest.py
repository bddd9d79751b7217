"""What several tests of the benchmarks need: their threads put back, and results of tiny runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import harness


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back, which a benchmark sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of every benchmark, run with tiny sizes."""
    from benchmarks import decode, layer, live, packing, step

    folder = tmp_path_factory.mktemp("results")
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "RESULTS", folder)
        patch.setattr(harness, "physical_cores", lambda: before)
        for benchmark in (layer, step, decode, packing, live):
            benchmark.main("cpu", quick=True)
    return folder / "quick"
