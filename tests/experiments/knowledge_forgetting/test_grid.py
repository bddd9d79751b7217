"""A grid makes each run once, and goes on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.knowledge_forgetting.grid import (
    ABLATIONS,
    SEEDS,
    STUDIES,
    ablations,
    frontier,
    rows_study,
    work_through,
)
from experiments.knowledge_forgetting.run import Settings
from tests.experiments.knowledge_forgetting.made_up import FailingScale, MadeUpScale


def test_every_arm_has_the_same_budget():
    runs = [one for one in frontier(MadeUpScale()) if one.arm != "base"]
    budget = {(arm, seed): 0 for arm in {one.arm for one in runs} for seed in SEEDS}
    for one in runs:
        budget[one.arm, one.seed] += 1
    assert set(budget.values()) == {2}


def test_a_study_changes_one_thing():
    scale = MadeUpScale()
    assert all(len(one.changes) == 1 for one in ablations(scale, [0]))
    changed = {(one.arm, key) for one in ablations(scale, [0]) for key in one.changes}
    assert changed == {(arm, key) for arm, keys in ABLATIONS.items() for key in keys}
    assert {one.rows for one in rows_study(scale, [0])} == set(scale.row_counts)
    names = [one.name for study in STUDIES.values() for one in study(scale)]
    assert len(set(names)) < len(names), "studies share runs"


def test_only_what_is_missing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [Settings("made_up", arm, 1e-2, 16, 0) for arm in ("base", "lora_mlp")]
    (tmp_path / f"{runs[0].name}.json").write_text('"kept"')
    work_through(runs, MadeUpScale(), tmp_path, workers=1)
    assert json.loads((tmp_path / f"{runs[0].name}.json").read_text()) == "kept"
    assert json.loads((tmp_path / f"{runs[1].name}.json").read_text())["settings"]["arm"] == "lora_mlp"
    assert "1 of 2 runs are there" in capsys.readouterr().out


def test_a_run_that_fails_keeps_no_other_from_its_end(tmp_path: Path):
    runs = [Settings("made_up", "lora_mlp", 1e-2, 16, seed) for seed in (1, 0)]
    with pytest.raises(
        RuntimeError,
        match=r"1 of 2 runs failed, and the others are written\. lora_mlp-lr0\.01-rows16-seed1: OSError: the disk",
    ):
        work_through(runs, FailingScale(), tmp_path, workers=1)
    assert (tmp_path / f"{runs[1].name}.json").is_file()
