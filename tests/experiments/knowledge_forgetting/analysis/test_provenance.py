"""Where runs come from is collected from all of them."""

from __future__ import annotations

from experiments.knowledge_forgetting.analysis.provenance import of


def test_everything_that_occurs_is_told(grid):
    grid.add("full", 1e-3, 0.9, 0.8, seed=2)
    other = grid.add("full", 1e-3, 0.9, 0.8, seed=1)
    grid.spoil(other, "provenance.commit", "fedcba9876543210")
    grid.spoil(other, "provenance.versions", {"torch": "2.12.0", "peft": "0.21.2"})
    grid.spoil(other, "provenance.dirty", True)
    results = grid.read()
    assert of([results.base, *results.trained]).line() == (
        "3 runs, seeds 1, 2; a made-up machine, one thread a run; peft 0.21.2, torch 2.12.0 / 2.13.0; "
        "2026-11-20 to 2026-11-22; base model ba5eba5eba5e; commit 0123456, fedcba9 (1 runs with uncommitted changes)."
    )
