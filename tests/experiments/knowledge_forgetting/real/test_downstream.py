"""Downstream tasks as rows and as items."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.real.downstream import LONGEST, around, boolq, choices, gsm8k, reading
from tests.experiments.knowledge_forgetting.real.conftest import write


def test_choices_answer_with_the_text(data):
    row, item = choices(data, "openbookqa", "train")[2]
    assert row["instruction"] == item.prompt
    assert item.prompt == "Which openbookqa of 2?"
    assert item.candidates == ("word2", "word3", "word4", "word5")
    assert row["output"] == item.candidates[item.right] == "word4"
    assert len(choices(data, "arc", "train")) == 640  # both parts of ARC


@pytest.mark.parametrize(
    ("texts", "answer"), [("Answer1: a Answer2: a", "answer1"), ("Answer1: a Answer2: b", "answer3")]
)
def test_broken_choices_are_left_out(tmp_path, texts, answer):
    entry = {"instruction": f"question: Which?\n\n{texts}\n\nAnswer format: x", "answer": answer}
    write(tmp_path / "llm_adapters/openbookqa/test.json", [entry])
    assert choices(tmp_path, "openbookqa", "test") == []


def test_boolq_is_true_or_false(data):
    for row, item in boolq(data, "test"):
        assert row["output"] == item.candidates[item.right]
    assert row["task_type"] == 0


def test_gsm8k_asks_for_the_last_computation(data):
    row, item = gsm8k(data, "train")[11]
    assert row["output"] == "He has 1 + 11 = 12 eggs.\n#### 12"
    assert (item.given, item.right) == ("He has 1 + 11 = ", 0)
    assert item.candidates == ("12", *(f"12{digit}" for digit in range(10)))


def test_long_and_unmarked_rows_are_left_out(tmp_path):
    marked = "<<1+1=2>>2"
    entries = [
        {"question": "q" * (LONGEST - 1), "answer": marked},
        {"question": "q" * LONGEST, "answer": marked},
        {"question": "q", "answer": "no computation"},
    ]
    write(tmp_path / "gsm8k/test.jsonl", entries)
    assert [len(row["instruction"]) for row, _ in gsm8k(tmp_path, "test")] == [LONGEST - 1]


def test_reading_keeps_articles_apart(data):
    articles = reading(data)
    assert len(articles) == 48
    ((row, item),) = articles[7]
    assert item.input == row["input"] == "The town 7 is old. It has 7 gates. The walls are high."
    assert item.candidates == ("7 gates",)


CONTEXT = "One is a. Two is b. Three is c. Four is d."


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(5, "Two is b."), (25, "Two is b. Three is c."), (34, "One is a. Two is b. Three is c."), (99, CONTEXT)],
)
def test_around_takes_whole_sentences(size, wanted):
    assert around(CONTEXT, CONTEXT.index("b."), 1, size) == wanted


def test_around_an_answer_over_two_sentences():
    start = CONTEXT.index("b.")
    assert around(CONTEXT, start, len("b. Three"), 1) == "Two is b. Three is c."
