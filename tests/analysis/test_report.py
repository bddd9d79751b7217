"""The report: complete or not there, well-formed, escaped, with the numbers; its figures; and `loramoe report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from loramoe import LoraMoeConfig, cli
from loramoe.analysis import write_report
from loramoe.analysis.report import FIGURES, NUMBERS, PAGE, plot_experts, plot_groups, remove_report
from loramoe.data import PromptFormat, save_prompt_format

HOSTILE = "<script>window.injected=1</script>\"'&"
NAMES = {0: "tasks", 1: "knowledge", 2: "code"}
OBSERVED = {"adapter": "adapter", "base_model": HOSTILE, "data": HOSTILE}


# --- The page --------------------------------------------------------------------------------------------------------


def test_the_page_is_one_well_formed_file_and_opens_with_the_conclusion(make_stats, tmp_path: Path):
    stats, config = make_stats(), LoraMoeConfig(lora_nums=4)
    (tmp_path / "notes.txt").touch()
    conclusion = write_report(stats, config, {0: "tasks", 1: HOSTILE}, tmp_path, **OBSERVED)
    assert {file.name for file in tmp_path.iterdir()} == {PAGE, NUMBERS, *FIGURES, "notes.txt"}
    page = ElementTree.parse(tmp_path / PAGE)
    assert "<script" not in (tmp_path / PAGE).read_text()
    assert page.find(".//main/p").text == conclusion
    assert conclusion.startswith("Separation 10 of 10 points")
    images = page.findall(".//img")
    assert [image.get("src").startswith("data:image/png;base64,") for image in images] == [True, True]
    assert all(image.get("alt") for image in images)
    text = " ".join(page.getroot().itertext()).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("55.0 % (55.0 %)", "10 tasks samples of 1,000 tokens", "4 of rank 4 in each of 6 linear layers"):
        assert part in text
    numbers = json.loads((tmp_path / NUMBERS).read_text())
    np.testing.assert_allclose(numbers["gate_TLE"], stats.gate_TLE)
    assert numbers["separation"] == pytest.approx(0.1)
    assert (numbers["adapter"], numbers["blc_target"], numbers["layers"]) == ("adapter", "match", list(stats.layers))
    remove_report(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_page_of_one_type_without_a_target(make_stats, tmp_path: Path):
    conclusion = write_report(make_stats(task_types=(1,)), LoraMoeConfig(blc_weight=0), NAMES, tmp_path, **OBSERVED)
    assert "knowledge" in conclusion
    assert "none (blc_weight=0)" in (tmp_path / PAGE).read_text()


# --- The figures -----------------------------------------------------------------------------------------------------


def test_groups_are_lines_around_the_even_share_with_dashed_targets(make_stats):
    stats = make_stats(expert_types=(1, 0, 0, 0), own=0.8)
    figure = plot_groups(stats, np.array([[0.7, 0.3], [0.6, 0.4]]), NAMES, "the title")
    tasks, knowledge = figure.axes
    assert (tasks.get_title(), knowledge.get_title()) == ("tasks experts", "knowledge experts")
    lines = {line.get_label(): line for line in tasks.lines}
    np.testing.assert_allclose(lines["tasks samples"].get_ydata(), [5, 5, 5])  # 80 % of weight, 75 % of the experts
    np.testing.assert_allclose(lines["knowledge samples"].get_ydata(), [-55, -55, -55])
    assert lines["target, tasks"].get_ydata()[0] == pytest.approx(-5)
    for name in ("tasks", "knowledge"):
        assert lines[f"target, {name}"].get_linestyle() == "--"
        assert lines[f"target, {name}"].get_color() == lines[f"{name} samples"].get_color()
    markers = {lines[f"{name} samples"].get_marker() for name in ("tasks", "knowledge")}
    assert len(markers - {"None"}) == 2  # readable without colour


def test_experts_diverge_around_an_even_gate(make_stats):
    stats = make_stats(task_types=(0, 1, 2), expert_types=(2, 0, 1), own=0.5, layers=48)
    *panels, _ = plot_experts(stats, NAMES).axes
    assert [panel.get_title() for panel in panels] == ["tasks samples", "knowledge samples", "code samples"]
    image = panels[0].images[0]
    low, high = image.get_clim()
    assert low == -high < 0
    np.testing.assert_allclose(image.get_array()[0], [50 - 100 / 3, 25 - 100 / 3, 25 - 100 / 3])  # by type
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "2", "0"]
    assert len(panels[0].get_yticks()) <= 16


# --- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def report(own_dataset_cache, tiny_task, perturb, tmp_path: Path) -> Any:
    """Runs `loramoe report` of an adapter; later flags replace earlier ones."""
    base, adapter = AutoModelForCausalLM.from_pretrained(tiny_task.base), tmp_path / "adapter"
    perturb(get_peft_model(base, LoraMoeConfig(lora_nums=3))).save_pretrained(adapter)
    save_prompt_format(adapter, PromptFormat("release", 32, NAMES))

    def run(*flags: str) -> int:
        known = ["--adapter", str(adapter), "--file", str(tiny_task.test_file), "--output_dir", str(tmp_path / "out")]
        return cli.main(["report", *known, *flags])

    return run


def test_the_command_concludes_and_does_not_overwrite(report, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert report() == 0
    numbers = json.loads((tmp_path / "out" / NUMBERS).read_text())
    assert numbers["conclusion"] in capsys.readouterr().out
    assert "knowledge" in numbers["conclusion"]
    assert (numbers["samples_T"], numbers["data"]) == ([6, 6], "test.json")
    assert report() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert report("--overwrite", "--limit", "4", "--batch_size", "3") == 0
    assert sum(json.loads((tmp_path / "out" / NUMBERS).read_text())["samples_T"]) == 4


@pytest.mark.parametrize(
    ("flag", "value", "word"),
    [
        ("--file", "nowhere.json", "nowhere.json"),
        ("--template", "chat", "chat_template"),
        ("--device", "nowhere", "--device"),
        ("--adapter", "nowhere/at all", "nowhere/at all"),
    ],
)
def test_errors_of_one_line(report, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, word):
    assert report(flag, value) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("loramoe report: ")
    assert word in error
    assert not (tmp_path / "out").exists()
