"""The mixture of training rows."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.knowledge_forgetting.real.mixture import mixture


def rows(name: str, count: int, task_type: int = 0) -> list[dict]:
    return [{"instruction": f"{name} {n}", "input": "", "output": "x", "task_type": task_type} for n in range(count)]


QUESTIONS = rows("question", 50, 1)
TASKS = {"a": rows("a", 100), "b": rows("b", 10), "c": rows("c", 100)}


def test_shares():
    drawn = Counter(row["instruction"].split()[0] for row in mixture(QUESTIONS, TASKS, 100, 0))
    assert drawn == {"question": 25, "a": 25, "b": 25, "c": 25}
    assert len(mixture(QUESTIONS, TASKS, 101, 0)) == 101
    assert all(row["task_type"] == 0 for row in mixture(QUESTIONS, TASKS, 20, 0, share=0.0))


def test_what_is_replayed_stands_in_place_of_questions():
    drawn = Counter(
        row["instruction"].split()[0] for row in mixture(QUESTIONS, TASKS, 100, 0, replayed=rows("told", 10, 1))
    )
    assert drawn == {"question": 15, "told": 10, "a": 25, "b": 25, "c": 25}
    more = mixture(QUESTIONS, TASKS, 100, 0, replayed=rows("told", 40, 1))
    assert sum(row["task_type"] for row in more) == 25


def test_small_tasks_are_repeated_evenly():
    drawn = Counter(row["instruction"] for row in mixture(QUESTIONS, TASKS, 100, 0))
    assert sorted(drawn[row["instruction"]] for row in TASKS["b"]) == [2] * 5 + [3] * 5
    assert all(drawn[row["instruction"]] <= 1 for row in TASKS["a"])


def test_fewer_rows_are_among_more():
    few, many = (Counter(row["instruction"] for row in mixture(QUESTIONS, TASKS, n, 3)) for n in (40, 100))
    assert few <= many


def test_seeds_draw():
    assert mixture(QUESTIONS, TASKS, 40, 0) == mixture(QUESTIONS, TASKS, 40, 0)
    assert mixture(QUESTIONS, TASKS, 40, 0) != mixture(QUESTIONS, TASKS, 40, 1)


def test_impossible_share():
    with pytest.raises(ValueError, match=r"between 0 and 1; got 1.5. Pass such as 0.25"):
        mixture(QUESTIONS, TASKS, 10, 0, share=1.5)
