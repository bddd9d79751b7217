"""Result files are read as they were written, and what would break a comparison is refused by name."""

from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.knowledge_forgetting import provenance
from tests.experiments.knowledge_forgetting.analysis.conftest import Grid


def test_reads_what_was_written(grid):
    right = np.random.default_rng(0).integers(2, size=101).astype(bool)
    grid.add("base", 0.0, right, 0.2, rows=0)
    grid.add("full", 1e-3, right[::-1], 0.75, seed=2, validation={"tasks": 0.5})
    results = grid.read()
    run = results.trained[0]
    assert (run.arm, run.learning_rate, run.rows, run.seed, run.changes) == ("full", 1e-3, 400, 2, {})
    np.testing.assert_array_equal(run.items["test"]["facts"], right[::-1])
    assert run.mean("test", ("facts", "tasks")) == pytest.approx((right.mean() + 0.75) / 2)
    assert run.mean("validation", results.sets.downstream) == 0.5


def test_an_accuracy_that_was_rounded_is_taken_from_the_items(grid):
    third = np.arange(99) % 3 == 0
    grid.add("base", 0.0, 1.0, third, rows=0)
    grid.spoil(grid.folder / "base_0_0_0_.json", "accuracy.test.tasks", 0.3333)
    assert grid.read().base.accuracy["test"]["tasks"] == 1 / 3


SPOILT = {
    "settings.seed": (..., "full.json: the field settings.seed is missing."),
    "settings.rows": ("many", "full.json: settings.rows is 'many'; expected int."),
    "trainable_parameters": (True, "full.json: trainable_parameters is True; expected int."),
    "routing": (3, "full.json: routing is 3; expected dict."),
    "routing.share": ([1], "full.json: routing.share is [1]; expected dict."),
    "accuracy.validation.tasks": (1.5, "full.json: accuracy.validation.tasks is 1.5; expected a share, between 0 and"),
    "items.validation": (..., "full.json: the field items.validation.facts is missing."),
    "provenance.base": (..., "full.json: the field provenance.base is missing."),
    "provenance.dirty": (0, "full.json: provenance.dirty is 0; expected bool."),
    "items.test.facts": ("a", "full.json: items.test.facts is no base64"),
    "counts.test.facts": (90, "full.json: items.test.facts holds 13 bytes, which is not what 90 items fill."),
    "accuracy.test.facts": (0.7, "full.json: items.test.facts has 90 right of 100, but the accuracy is 0.7."),
}


@pytest.mark.parametrize("field", SPOILT)
def test_a_spoilt_field_is_named(grid, field):
    routing = {"coefficient_of_variation": 0.5, "share": {}}
    file = grid.add("full", 1e-3, 0.9, 0.8, routing=routing).rename(grid.folder / "full.json")
    value, text = SPOILT[field]
    grid.spoil(file, field, value)
    with pytest.raises(ValueError, match=re.escape(text)):
        grid.read()


def test_a_file_that_was_cut_off_is_named(grid):
    file = grid.add("full", 1e-3, 0.9, 0.8)
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"full_0\.001.* is not JSON .*; remove it, and its run is made again\."):
        grid.read()


def test_runs_with_other_items_are_refused(grid):
    grid.add("full", 1e-3, np.ones(99), 0.8)
    with pytest.raises(
        ValueError, match=r"99 items of facts in validation, but base_0_0_0_\.json has 100; .* run one of them again"
    ):
        grid.read()


@pytest.mark.parametrize(("key", "what"), [("base", "base model"), ("code", "code"), ("items", "items")])
def test_runs_of_another_making_are_refused(grid, key, what):
    file = grid.add("full", 1e-3, 0.9, 0.8)
    grid.spoil(file, f"provenance.{key}", "0123456789abcdef")
    text = rf"{file.name} and base_0_0_0_\.json are not of the same {what} \(provenance\.{key}: 0123456789ab and .*"
    with pytest.raises(ValueError, match=text + r"Remove the older ones, and their runs are made again\."):
        grid.read()


def test_runs_of_code_that_repeats_earlier_ones_are_read_beside_them(grid, monkeypatch):
    file = grid.add("full", 1e-3, 0.9, 0.8)
    grid.spoil(file, "provenance.code", "latest")
    monkeypatch.setattr(provenance, "REPEATS", {"latest": "later", "later": "c0de" * 16})
    assert len(grid.read().trained) == 1


def test_runs_beyond_are_read_and_must_be_of_the_same_making(grid):
    beyond = Grid(grid.folder / "beyond")
    (beyond.folder / "sets.json").unlink()
    file = beyond.add("full", 1.0, 0.1, 0.1)
    results = grid.read()
    assert (results.trained, [run.file for run in results.beyond]) == ((), [f"beyond/{file.name}"])
    grid.spoil(file, "provenance.code", "another")
    with pytest.raises(ValueError, match=r"beyond/full_1.* and base_0_0_0_\.json are not of the same code"):
        grid.read()


def test_chance_is_told_by_set(grid):
    grid.sets(facts=0.25)
    grid.add("full", 1e-3, 0.7, 0.8)
    results = grid.read()
    assert results.sets.chance == {"facts": 0.25, "tasks": 0.0}
    assert results.kept(results.trained[0]) == pytest.approx(0.45 / 0.75)
    grid.sets(fact=0.25)
    with pytest.raises(ValueError, match=r"sets\.json: chance names the set 'fact'; expected sets of knowledge and"):
        grid.read()
    (grid.folder / "sets.json").write_text('{"knowledge": ["facts"], "downstream": ["tasks"]}')
    with pytest.raises(ValueError, match=r"sets\.json: the field chance is missing\."):
        grid.read()


def test_a_base_that_guesses_has_nothing_to_keep(grid):
    grid.sets(facts=0.25)
    grid.add("base", 0.0, 1.0, 0.2, rows=0, validation={"facts": 0.25})
    with pytest.raises(
        ValueError, match=r"has 0\.250 of facts in validation, a guess 0\.250: .* Take the set out of kn"
    ):
        grid.read()


def test_the_same_run_twice_is_refused(grid):
    grid.add("full", 1e-3, 0.9, 0.8).rename(grid.folder / "copy.json")
    grid.add("full", 1e-3, 0.9, 0.8)
    with pytest.raises(ValueError, match=r"full_0.* and copy\.json are the same run, .*; remove one of them\."):
        grid.read()


def test_without_the_base_nothing_can_be_told(grid):
    (grid.folder / "base_0_0_0_.json").unlink()
    with pytest.raises(ValueError, match="holds 0 runs of the arm base, which all others are measured against; expec"):
        grid.read()


def test_sets_must_be_told(grid):
    (grid.folder / "sets.json").write_text('{"knowledge": ["facts"], "downstream": []}')
    with pytest.raises(ValueError, match=r"sets\.json: downstream is empty; expected the names of at least one set"):
        grid.read()
    (grid.folder / "sets.json").unlink()
    with pytest.raises(ValueError, match=r"sets\.json is missing\."):
        grid.read()
