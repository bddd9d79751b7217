"""A grid makes each run once, and goes on after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from experiments.knowledge_forgetting import __main__ as program
from experiments.knowledge_forgetting import provenance
from experiments.knowledge_forgetting.arms import ARMS, recipe_of
from experiments.knowledge_forgetting.changes import BEST, FINALISTS, LONGER, RECIPES
from experiments.knowledge_forgetting.grid import (
    RECIPE_SEEDS,
    SEEDS,
    STUDIES,
    best,
    check_alike,
    frontier,
    longer,
    recipes,
    rows_study,
    work_through,
)
from experiments.knowledge_forgetting.provenance import provenance_of
from experiments.knowledge_forgetting.real import RealScale
from experiments.knowledge_forgetting.run import Settings, plain
from experiments.knowledge_forgetting.tiny.scale import TinyScale
from tests.experiments.knowledge_forgetting.made_up import FailingScale, MadeUpScale

ROOT = Path(__file__).resolve().parents[3]


def test_every_arm_has_the_same_budget():
    budget = dict.fromkeys({(one.arm, one.seed) for one in frontier(MadeUpScale())}, 0)
    for one in frontier(MadeUpScale()):
        budget[one.arm, one.seed] += 1
    assert set(budget.values()) == {2}
    assert {seed for _, seed in budget} == set(SEEDS)


@pytest.mark.parametrize("study", STUDIES)
def test_all_that_a_study_changes_can_be_changed(study: str):
    for one in STUDIES[study](MadeUpScale()):
        recipe_of(one.arm, one.changes)


def test_recipes_are_chosen_with_seeds_that_no_published_comparison_has():
    assert not set(SEEDS) & set(RECIPE_SEEDS)
    assert {
        one.seed for study in ("recipes", "ablations", "larger", "longer") for one in STUDIES[study](MadeUpScale())
    } == set(RECIPE_SEEDS)


def test_the_best_recipe_is_one_that_was_tried_and_is_measured_with_seeds_that_chose_nothing():
    assert all(recipe in LONGER for recipe in BEST)
    assert {one.seed for one in best(MadeUpScale())} == set(SEEDS)


def test_finalists_are_among_the_recipes():
    assert all(finalist in RECIPES for finalist in FINALISTS)
    assert {(one.arm, one.seed) for one in recipes(MadeUpScale()) if one.seed != RECIPE_SEEDS[0]} == {
        ("loramoe_all", 11)
    }


def test_every_arm_of_the_real_scale_has_a_fifth_rate(tmp_path: Path):
    runs = frontier(RealScale(tmp_path), seeds=[0])
    rates = {
        name: [one.learning_rate for one in runs if one.arm == name] for name in ("full", "lora_mlp", "loramoe_all")
    }
    assert rates == {
        "full": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3],
        "lora_mlp": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
        "loramoe_all": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    }
    assert len(runs) == 7 * 5


def test_the_real_scale_is_asked_on_ten_times_its_rows_at_the_third_rate(tmp_path: Path):
    runs = rows_study(RealScale(tmp_path), seeds=[0])
    assert sorted({one.rows for one in runs}) == [100, 200, 400, 1_000, 2_000, 4_000]
    assert {(one.arm, one.learning_rate) for one in runs} == {
        ("full", 1e-4),
        ("lora_all", 1e-3),
        ("loramoe_paper", 1e-3),
        ("loramoe_all", 1e-3),
    }


def test_the_larger_size_of_the_real_scale_takes_the_same_rates_on_other_rows(tmp_path: Path):
    smaller, larger = (rows_study(RealScale(tmp_path, size=size), seeds=[0]) for size in ("cpu", "gpu"))
    assert {(one.arm, one.learning_rate) for one in larger} == {(one.arm, one.learning_rate) for one in smaller}
    assert sorted({one.rows for one in larger}) == [800, 2_400, 8_000, 24_000]


def test_several_epochs_take_the_two_lowest_rates_and_at_the_real_scale_the_two_above(tmp_path: Path):
    assert rates_by_arm(longer(TinyScale()))["loramoe_all"] == [1e-3, 2e-3]
    rates = {"full": [3e-5, 1e-4], "lora_all": [3e-4, 1e-3], "loramoe_all": [3e-4, 1e-3]}
    assert rates_by_arm(longer(RealScale(tmp_path))) == rates


def test_the_best_recipe_has_every_rate_of_the_arms_and_at_the_tiny_scale_half_the_lowest(tmp_path: Path):
    for scale, more in ((RealScale(tmp_path), 0), (TinyScale(), 1)):
        rates = rates_by_arm(best(scale))
        assert set(rates) == {"full", "lora_all", "loramoe_all"}
        for arm, of_arm in rates.items():
            its_own = scale.learning_rates[ARMS[arm].kind]
            assert tuple(of_arm[more:]) == its_own
            assert of_arm[:more] == [its_own[0] / 2] * more


def rates_by_arm(runs: list[Settings]) -> dict[str, list[float]]:
    return {arm: sorted({one.learning_rate for one in runs if one.arm == arm}) for arm in {one.arm for one in runs}}


def test_a_scale_of_which_no_more_is_said_is_asked_on_its_own_rows_at_the_second_rate():
    runs = rows_study(MadeUpScale(), seeds=[0])
    assert sorted({one.rows for one in runs}) == [16, 64]
    assert {one.learning_rate for one in runs} == {3e-3, 1e-2}


def test_the_flags_choose_runs_and_the_base_is_always_there():
    chosen = program.wanted(MadeUpScale(), ["frontier"], ["lora_mlp"], [7])
    assert [(one.arm, one.seed) for one in chosen] == [("base", 0), ("lora_mlp", 7), ("lora_mlp", 7)]
    assert len(program.wanted(MadeUpScale(), None, None, None)) > 100
    chosen = program.wanted(MadeUpScale(), ["rows"], ["full"], [7], [16])
    assert [(one.arm, one.rows) for one in chosen] == [("base", 0), ("full", 16)]
    with pytest.raises(ValueError, match=r"--rows 17: none of the runs that are asked for has it\. Take of 16, 64\."):
        program.wanted(MadeUpScale(), ["rows"], ["full"], [7], [16, 17])
    chosen = program.wanted(MadeUpScale(), ["frontier"], ["full", "lora_mlp"], [7], rates=[1e-2])
    assert [(one.arm, one.learning_rate) for one in chosen] == [("base", 0.0), ("lora_mlp", 1e-2)]
    told = r"--rates 0\.5: none of the runs that are asked for has it\. Take of 0\.001, 0\.003\."
    with pytest.raises(ValueError, match=told):
        program.wanted(MadeUpScale(), ["frontier"], ["full"], [7], rates=[1e-3, 0.5])


def test_a_scale_without_bfloat16_cannot_do_without_it():
    with pytest.raises(
        ValueError, match=r"--float32: the scale made_up computes in float32 anyway\. Leave the flag out"
    ):
        program.without_bfloat16(MadeUpScale())


def test_without_bfloat16_results_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[Path, bool]] = []
    scale = MadeUpScale()
    scale.bf16 = True
    monkeypatch.setattr(program, "make_scale", lambda *_: scale)
    monkeypatch.setattr(program, "work_through", lambda runs, scale, folder, workers: made.append((folder, scale.bf16)))
    monkeypatch.setattr(program, "warning", lambda bf16: None)
    program.main(["real", "--out", str(tmp_path)])
    program.main(["real", "--out", str(tmp_path), "--float32"])
    assert made == [(tmp_path / "made_up", True), (tmp_path / "made_up_float32", False)]


@pytest.mark.parametrize(("flags", "folder"), [([], "made_up"), (["--again"], "made_up_again")])
def test_a_repetition_has_a_folder_of_its_own_and_a_slow_processor_is_told(
    flags: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made: list[Path] = []
    monkeypatch.setattr(program, "make_scale", lambda *_: MadeUpScale())
    monkeypatch.setattr(program, "work_through", lambda runs, scale, folder, workers: made.append(folder))
    monkeypatch.setattr(program, "warning", lambda bf16: "It will take days.")
    program.main(["tiny", "--out", str(tmp_path), *flags])
    assert made == [tmp_path / folder]
    assert (tmp_path / folder / "sets.json").is_file()
    assert "It will take days." in capsys.readouterr().err


def test_the_real_scale_wants_data():
    with pytest.raises(ValueError, match=r"the real scale reads data sets that are not ours to give\. Say --data"):
        program.make_scale("real", None, "cpu")


@pytest.mark.slow
def test_only_what_is_missing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [Settings("made_up", arm, 1e-2, 16, 0) for arm in ("base", "lora_mlp")]
    work_through(runs[:1], MadeUpScale(), tmp_path, workers=1)
    first = tmp_path / f"{runs[0].name}.json"
    written = first.stat().st_mtime_ns
    work_through(runs, MadeUpScale(), tmp_path, workers=2)
    assert first.stat().st_mtime_ns == written
    assert json.loads((tmp_path / f"{runs[1].name}.json").read_text())["settings"]["arm"] == "lora_mlp"
    assert "1 of 2 runs are there" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_fails_keeps_no_other_from_its_end(tmp_path: Path):
    runs = [Settings("made_up", "lora_mlp", 1e-2, 16, seed) for seed in (1, 0)]
    told = r"1 of 2 runs failed, and the others are written\. lora_mlp-lr0\.01-rows16-seed1: OSError: the disk is full"
    with pytest.raises(RuntimeError, match=told):
        work_through(runs, FailingScale(), tmp_path, workers=1)
    assert (tmp_path / f"{runs[1].name}.json").is_file()


@pytest.mark.parametrize("changed", ["code", "base", "items", "precision", "recipe"])
def test_results_that_do_not_belong_together_are_refused(tmp_path: Path, changed: str):
    today = provenance_of(MadeUpScale())
    settings = Settings("made_up", "lora_mlp", 1e-2, 16, 0, {"r": 2})
    result = {
        "settings": asdict(settings),
        "recipe": plain(recipe_of(settings.arm, settings.changes)),
        "provenance": dict(today),
    }
    file = tmp_path / f"{settings.name}.json"
    file.write_text(json.dumps(result))
    check_alike(tmp_path, today)
    if changed == "recipe":
        result["recipe"]["r"] = 3
    else:
        result["provenance"][changed] = "0"
    file.write_text(json.dumps(result))
    with pytest.raises(
        ValueError, match=f"was made with another {changed} than there is now. Remove it, and all like it"
    ):
        check_alike(tmp_path, today)


def test_code_that_repeats_what_is_there_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    today = provenance_of(MadeUpScale())
    settings = Settings("made_up", "lora_mlp", 1e-2, 16, 0)
    result = {
        "settings": asdict(settings),
        "recipe": plain(recipe_of(settings.arm, settings.changes)),
        "provenance": {**today, "code": "earlier"},
    }
    (tmp_path / f"{settings.name}.json").write_text(json.dumps(result))
    monkeypatch.setattr(provenance, "REPEATS", {today["code"]: "earlier"})
    check_alike(tmp_path, today)


def test_results_older_than_a_value_of_the_recipe_have_its_default(tmp_path: Path):
    today, file = provenance_of(MadeUpScale()), tmp_path / "lora_mlp-lr0.01-rows16-seed0.json"
    result = {
        "settings": asdict(Settings("made_up", "lora_mlp", 1e-2, 16, 0)),
        "recipe": plain(recipe_of("lora_mlp", {})),
        "provenance": today,
    }
    del result["recipe"]["epochs"]
    file.write_text(json.dumps(result))
    check_alike(tmp_path, today)


@pytest.mark.parametrize(("scale", "precision"), [("tiny", "float32"), ("real", "bfloat16")])
def test_results_older_than_precisions_have_that_of_their_scale(scale: str, precision: str, tmp_path: Path):
    settings = Settings(scale, "lora_mlp", 1e-2, 16, 0)
    older = {name: told for name, told in provenance_of(MadeUpScale()).items() if name != "precision"}
    result = {"settings": asdict(settings), "recipe": plain(recipe_of("lora_mlp", {})), "provenance": older}
    (tmp_path / f"{settings.name}.json").write_text(json.dumps(result))
    check_alike(tmp_path, {**older, "precision": precision})
    with pytest.raises(ValueError, match="was made with another precision than there is now"):
        check_alike(tmp_path, {**older, "precision": "float16"})


@pytest.mark.slow
def test_a_run_of_two_epochs_has_twice_the_steps(tmp_path: Path):
    runs = [Settings("made_up", "lora_mlp", 1e-2, 16, 0, changes) for changes in ({}, {"epochs": 2})]
    work_through(runs, MadeUpScale(), tmp_path, workers=1)
    results = [json.loads((tmp_path / f"{one.name}.json").read_text()) for one in runs]
    assert [result["steps"] for result in results] == [2, 4]
    assert [result["settings"]["rows"] for result in results] == [16, 16]


@pytest.mark.slow
def test_workers_end_with_a_grid_that_was_killed(tmp_path: Path):
    code = "from experiments.knowledge_forgetting.grid import work_through\n"
    code += "from experiments.knowledge_forgetting.run import Settings\n"
    code += "from tests.experiments.knowledge_forgetting.made_up import MadeUpScale\nfrom pathlib import Path\n"
    code += "if __name__ == '__main__':\n"
    code += "    runs = [Settings('made_up', 'full', 1e-3, 100_000, seed) for seed in range(4)]\n"
    code += f"    work_through(runs, MadeUpScale(), Path({str(tmp_path)!r}), workers=2)\n"
    script = tmp_path / "grid.py"
    script.write_text(code)
    grid = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    workers: list[psutil.Process] = []
    while len(workers) < 3:  # two, and multiprocessing's own tracker of resources
        assert grid.poll() is None
        workers = psutil.Process(grid.pid).children(recursive=True)
        time.sleep(0.1)
    time.sleep(5)
    grid.kill()
    grid.wait()
    assert psutil.wait_procs(workers, timeout=180)[1] == []
