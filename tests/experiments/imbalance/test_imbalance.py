"""The runs that are published are whole, their table and figure are of today, and a run keeps what it says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from experiments.imbalance import report, train

COV = {"step", "loss", "blc", "cov", "routing/cov/early", "routing/cov/down_proj", "share/type1/group1"}


def test_pages_and_figure_show_the_runs_in_results():
    assert report.stale(report.PAGES, report.FIGURE) == []
    for page in report.PAGES:
        assert f"{report.BEGIN}\n| arm |" in page.read_text(encoding="utf-8")


def test_published_runs_are_those_of_the_arms_as_they_are():
    for arm, of_seeds in report.load().items():
        assert [run["flags"] for run in of_seeds] == [train.FLAGS | train.ARMS[arm] | {"seed": s} for s in train.SEEDS]
        for run in of_seeds:
            assert [entry["step"] for entry in run["curve"]] == [1, *range(20, 501, 20)]
            assert all(entry.keys() >= COV for entry in run["curve"])
            assert all(0 <= cov <= report.largest_possible(report.load()) for cov in run["test"]["cov"].values())


def test_the_table_says_what_the_runs_hold():
    runs = report.load()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in report.table(runs).splitlines()}
    for arm, of_seeds in runs.items():
        ends = [
            sum(entry["cov"] for entry in run["curve"][-5:]) / 5
            for run in of_seeds  # the windows of the last 100 steps
        ]
        cell = f"{sum(ends) / 3:.2f} ({min(ends):.2f}–{max(ends):.2f})"
        assert rows[report.NAMES[arm]].split(" | ")[2] == cell


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results, to be changed."""
    shutil.copytree(train.RESULTS, tmp_path / "results")
    monkeypatch.setattr(train, "RESULTS", tmp_path / "results")
    return tmp_path


def test_another_result_makes_page_and_figure_stale_until_they_are_written(copied: Path):
    page, figure = copied / "page.md", copied / "figures" / "figure.png"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.stale([page], figure) == [page, figure]
    report.write([page], figure)
    assert report.stale([page], figure) == []
    assert re.fullmatch(r"before\n<!-- \S+ -->\n\| arm .*<!-- \S+ -->\nafter\n", page.read_text(), re.DOTALL)
    changed = train.result_file("off", 0)
    run = json.loads(changed.read_text())
    run["curve"][-1]["cov"] += 1
    changed.write_text(json.dumps(run))
    assert report.stale([page], figure) == [page, figure]


def test_a_page_without_the_marker_stays_as_it_is():
    assert report.filled("text\n", report.load()) == "text\n"


def test_only_what_is_missing_is_trained(copied: Path, monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    train.result_file("match", 1).unlink()
    monkeypatch.setattr(train, "measure", lambda arm, seed: {"arm": arm, "seed": seed})
    train.train_missing()
    assert json.loads(train.result_file("match", 1).read_text()) == {"arm": "match", "seed": 1}
    assert "curve" in json.loads(train.result_file("match", 0).read_text())
    shutil.rmtree(train.RESULTS)
    train.train_missing()
    torch.set_num_threads(threads)
    assert {file.name for file in train.RESULTS.iterdir()} == {
        train.result_file(arm, seed).name for arm in train.ARMS for seed in train.SEEDS
    }


@pytest.mark.slow
def test_a_run_keeps_its_curve_and_the_variation_of_each_linear(
    own_dataset_cache: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(train, "FLAGS", train.FLAGS | {"max_steps": 2, "logging_steps": 1})
    run = train.measure("off", 0)
    assert [entry["step"] for entry in run["curve"]] == [1, 2]
    assert run["curve"][0].keys() >= COV - {"share/type1/group1"}
    assert not any(name.startswith("routing/share") for name in run["curve"][0])
    assert len(run["test"]["cov"]) == 12
