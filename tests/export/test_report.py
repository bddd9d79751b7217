"""The tables, the model card and the figure say what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from loramoe.export.card import model_card
from loramoe.export.distance import Answers, Divergence, Group
from loramoe.export.figure import draw_linears
from loramoe.export.report import ExportReport, LinearReport, answer_table, divergence_table, linear_table


@pytest.fixture
def report() -> ExportReport:
    divergence = {"base": Divergence(2.0, 8.0, 9.0, 0.25), "export": Divergence(0.5, 1.5, 2.5, 0.75)}
    answers = {side: Answers(n / 10, n / 5, 2.0 * n) for n, side in enumerate(("base", "mixture", "export"), start=1)}
    return ExportReport(
        loramoe="1.2.3",
        source="my/adapter",
        base_model="my/base",
        base_on_hub=True,
        experts=3,
        rank=6,
        calibration_tokens=1234,
        held_out=True,
        lost=0.25,
        groups={"answers": Group(12, 3456, divergence, answers), "all tokens": Group(12, 9999, divergence, {})},
        recall={"base": 1.0, "mixture": 0.875, "export": 0.5},
        linears={
            "layers.0.up_proj": LinearReport([0.2, 0.3, 0.5], 0.125, 0.0625),
            "layers.0.down_proj": LinearReport([0.2, 0.3, 0.5], 0.375, 0.1875),
        },
    )


def test_divergences(report):
    assert divergence_table(report).splitlines()[2:] == [
        "| answers | 12 | 3,456 | 0.5 | 1.5 | 2.5 | 0.75 | 2 | 8 | 9 | 0.25 |",
        "| all tokens | 12 | 9,999 | 0.5 | 1.5 | 2.5 | 0.75 | 2 | 8 | 9 | 0.25 |",
    ]


def test_answers_and_recall(report):
    assert answer_table(report).splitlines() == [
        "|  | rows | base | mixture | export |",
        "| --- | --- | --- | --- | --- |",
        "| accuracy, answers | 12 | 0.1 | 0.2 | 0.3 |",
        "| token accuracy, answers | 12 | 0.2 | 0.4 | 0.6 |",
        "| perplexity, answers | 12 | 2 | 4 | 6 |",
        "| recall of known facts |  | 1 | 0.875 | 0.5 |",
    ]
    assert "recall" not in answer_table(replace(report, recall={}))


def test_linears_begin_with_the_largest_error(report):
    rows = ["| `layers.0.down_proj` | 0.375 | 0.1875 |", "| `layers.0.up_proj` | 0.125 | 0.0625 |"]
    assert linear_table(report).splitlines()[2:] == rows
    assert linear_table(report, most=1).splitlines()[2:] == rows[:1]


def test_the_card_says_what_it_is(report):
    front, text = model_card(report, "figure.png").split("---\n", 2)[1:]
    assert yaml.safe_load(front)["base_model"] == "my/base"
    plain = " ".join(text.split())
    assert "an approximation of my/adapter, not the trained adapter" in plain
    assert "mixes 3 experts" in plain
    assert "1,234 calibration tokens" in plain
    assert "rank 6" in plain
    assert "Measured on held-out rows." in plain
    assert "Over the answers it is 0.5, 25.0% of the base model's 2." in plain
    assert "Do not use it to report what LoRAMoE achieves" in plain
    for table in (divergence_table(report), answer_table(report), linear_table(report)):
        assert f"\n\n{table}\n\n" in text
    assert "](figure.png)" in text


def test_the_card_of_another_case(report):
    card = " ".join(model_card(replace(report, held_out=False, lost=None, base_on_hub=False)).split())
    assert "base_model" not in card, "a folder of this machine is no base model on the hub"
    assert "the calibration rows themselves, which flatters it" in card
    assert "The adapter says what the base model says." in card
    assert "![" not in card


def test_the_figure(report, tmp_path):
    draw_linears(report.linears, tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    draw_linears({name: replace(each, spread=1.0) for name, each in report.linears.items()}, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != content
