"""Where runs come from is collected from all of them."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.analysis.provenance import of
from experiments.knowledge_forgetting.analysis.style import MODELS
from tests.experiments.knowledge_forgetting.test_published import FOLDERS


def test_everything_that_occurs_is_told(grid):
    grid.add("full", 1e-3, 0.9, 0.8, seed=2)
    other = grid.add("full", 1e-3, 0.9, 0.8, seed=1)
    grid.spoil(other, "provenance.commit", "fedcba9876543210")
    grid.spoil(other, "provenance.versions", {"torch": "2.12.0", "peft": "0.21.2"})
    grid.spoil(other, "provenance.dirty", True)
    results = grid.read()
    assert of([results.base, *results.trained]).line() == (
        "3 runs, seeds 1, 2; a made-up machine, one thread a run; peft 0.21.2, torch 2.12.0 / 2.13.0; "
        "2026-11-20 to 2026-11-22; base model: made_up (fingerprint ba5eba5eba5e); "
        "commit 0123456, fedcba9 (1 runs with uncommitted changes)."
    )


@pytest.mark.parametrize("scale", ["real", "real_gpu"])
def test_the_real_model_is_never_told_without_what_was_done_to_it_before(grid, scale):
    for file in grid.folder.glob("base*.json"):
        grid.spoil(file, "settings.scale", scale)
    told = "base model: SmolLM2-135M-Instruct, whose weights were quantised to 4 bits before (fingerprint ba5eba5eba5e)"
    assert told in of([grid.read().base]).line()


def test_every_published_scale_has_a_name_for_its_base_model():
    assert {folder.name.removesuffix("_again").removesuffix("_float32") for folder in FOLDERS} <= set(MODELS)
