"""The report: markers are filled, stale pages and figures are found, every bar stands with value and verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import harness, report
from benchmarks.bars import BARS
from benchmarks.figures import draw_all
from benchmarks.tables import TABLES, bars, table

EMPTY = "before\n<!-- benchmarks:bars -->\nold\n<!-- /benchmarks:bars -->\nafter\n"


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, quick_results: Path) -> Path:
    monkeypatch.setattr(harness, "RESULTS", quick_results)
    return quick_results


def test_only_what_stands_between_the_markers_is_replaced(nothing_measured: Path) -> None:
    filled = report.filled(EMPTY)
    assert filled.startswith("before\n<!-- benchmarks:bars -->\n| figure |")
    assert filled.endswith("\n<!-- /benchmarks:bars -->\nafter\n")
    assert "old" not in filled
    assert report.filled(filled) == filled


def test_a_page_may_hold_several_tables(nothing_measured: Path) -> None:
    filled = report.filled("".join(f"<!-- benchmarks:{name} --><!-- /benchmarks:{name} -->\n\n" for name in TABLES))
    for name in TABLES:
        assert f"<!-- benchmarks:{name} -->\n{TABLES[name]()}\n<!-- /benchmarks:{name} -->" in filled


def test_a_marker_of_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="benchmarks:nothing names no table; there are bars, "):
        report.filled("<!-- benchmarks:nothing -->")


def test_a_marker_that_is_not_closed_is_refused(nothing_measured: Path) -> None:
    with pytest.raises(ValueError, match="<!-- benchmarks:bars --> is not closed; put <!-- /benchmarks:bars -->"):
        report.filled("<!-- benchmarks:bars -->\n")


def test_what_is_not_measured_shows_its_command(nothing_measured: Path) -> None:
    text = bars()
    assert text.count("not measured yet | –") == sum(len(bar.bars) for bar in BARS)
    assert "`python -m benchmarks cpu`" in text
    assert "`python -m benchmarks gpu`" in text
    assert "`python -m benchmarks.step --device cpu`" in TABLES["summary"]()
    for name in set(TABLES) - {"bars", "summary", "moe_peft", "data"}:
        assert f"`python -m benchmarks.{name} --device cuda`" in TABLES[name]()
    assert "`bash benchmarks/moe_peft.sh --device cpu`" in TABLES["moe_peft"]()
    assert "`python -m benchmarks data`" in TABLES["data"]()


def test_the_worst_cell_stands_in_the_table_and_all_must_reach_the_bar(nothing_measured: Path) -> None:
    def cell(share: float) -> dict:
        return {"dropout": 0.0, "features": [8, 8], "dtype": "float32", "added_over_naive": {"fused": share}}

    bar = BARS[0]
    assert bar.figure == "added cost, ours / naive loop, without dropout"
    record = {"device": "cpu", "cells": [cell(0.05), cell(0.11), cell(0.09)]}
    (nothing_measured / "layer.cpu.json").write_text(json.dumps(record))
    assert bar.measured("cpu") == [0.11, 0.09, 0.05]
    assert [bar.reached(value, "cpu") for value in (0.11, 0.10, 0.09)] == [False, True, True]
    assert bar.measured("cuda") is None


def test_bars_are_those_that_were_set() -> None:
    assert [(bar.bar("cpu"), bar.bar("cuda")) for bar in BARS] == [
        ("≤ 0.1", "≤ 0.06"),
        ("≤ 0.15", "≤ 0.06"),
        ("≤ 1", "≤ 0.6"),
        ("≤ 1.15", "≤ 1.12"),
        ("≤ 1", "≤ 0.7"),
        ("≤ 5%", "≤ 5%"),
        ("≥ 1", "≥ 1.1"),
        ("–", "≥ 50%"),
        ("≤ 1", "≤ 1"),
        ("≥ 1.8", "≥ 2"),
        ("≤ 1.25", "≤ 1.3"),
        ("≤ 1%", "≤ 1%"),
    ]


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


@pytest.mark.slow
def test_tables_hold_as_many_cells_in_every_row(measured: Path) -> None:
    for draw in TABLES.values():
        for block in re.findall(r"(?:^\|.*\|$\n?)+", draw(), re.MULTILINE):
            assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.slow
def test_every_bar_has_its_value_in_the_results(measured: Path) -> None:
    without = [bar.figure for bar in BARS if "cpu" in bar.bars and bar.measured("cpu") is None]
    assert without == ["time, ours / frozen base (CPU: 2048→5504, float32, without dropout)"]  # no such cell is tiny


@pytest.mark.slow
def test_stale_pages_and_figures_are_found_and_written(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "page.md", tmp_path / "figures"
    page.write_text(EMPTY)
    flags = [str(page), "--figures", str(figures)]
    assert report.main(["--check", *flags]) == 1
    assert capsys.readouterr().err.count("stale: ") == 3  # the page and two figures
    assert page.read_text() == EMPTY
    assert report.main(flags) == 0
    assert sorted(file.name for file in figures.iterdir()) == ["benchmark_layer_cpu.png", "benchmark_step_cpu.png"]
    assert report.main(["--check", *flags]) == 0
    page.write_text(page.read_text().replace("| figure |", "| Figure |"))
    assert report.main(["--check", *flags]) == 1


@pytest.mark.slow
def test_a_figure_of_older_results_is_stale(measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw_all(tmp_path)
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in measured.iterdir():
        (newer / file.name).write_text(json.dumps(json.loads(file.read_text()) | {"date": "2000-01-01"}))
    assert report.stale(tmp_path) == []
    monkeypatch.setattr(harness, "RESULTS", newer)
    assert [file.name for file in report.stale(tmp_path)] == ["benchmark_layer_cpu.png", "benchmark_step_cpu.png"]


def test_the_pages_of_the_repository_are_of_today() -> None:
    assert report.main(["--check"]) == 0
