"""Formats: four of them become the same conversations, and what is wrong with a value is named by its field."""

from __future__ import annotations

import pytest

from loramoe.data.formats import SampleReader

USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}
PART = {"type": "text", "text": "Who?"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"instruction": "Who?", "input": None, "output": "Me."}, [USER, ANSWER]),
        ({"instruction": "Who?", "input": "", "output": "Me.", "system": None, "id": 7}, [USER, ANSWER]),
        ({"instruction": "Who?", "output": "Me.", "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        ({"instruction": "Is", "input": "it?", "output": "Me."}, [{"role": "user", "content": "Is\nit?"}, ANSWER]),
        ({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER]}, [SYSTEM, USER, ANSWER, USER, ANSWER]),
        ({"messages": [{**SYSTEM, "content": ""}, USER, ANSWER]}, [USER, ANSWER]),
        ({"messages": [{**USER, "content": [PART]}, {**ANSWER, "name": "x"}]}, [USER, ANSWER]),
        ({"messages": None, "conversations": [HUMAN, GPT]}, [USER, ANSWER]),
        ({"conversations": [HUMAN, GPT], "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
    ],
)
def test_formats_are_recognised(value, expected):
    sample = SampleReader(task_type=0)(value)
    assert sample.messages == expected
    assert sample.task_type == 0


def test_a_named_format_wins():
    both = {"instruction": "What?", "output": "That.", "messages": [USER, ANSWER]}
    assert SampleReader(format="messages", task_type=0)(both).messages == [USER, ANSWER]
    assert SampleReader(format="alpaca", task_type=0)(both).messages[0]["content"] == "What?"


def test_columns_may_have_other_names():
    reader = SampleReader(columns={"instruction": "question", "output": "answer", "task_type": "kind"})
    sample = reader({"question": "Who?", "answer": "Me.", "kind": 3})
    assert (sample.messages, sample.task_type) == ([USER, ANSWER], 3)
    assert reader({"question": "Who?", "answer": ""})[1].startswith(", field 'answer': ")
    chat = SampleReader(columns={"messages": "chat"}, task_type=0)
    assert chat({"chat": [USER, ANSWER]}).messages == [USER, ANSWER]


@pytest.mark.parametrize(
    ("of_all", "default", "own", "expected"),
    [(None, 3, 1, 1), (None, 3, None, 3), (0, 3, 1, 0), (None, None, " 1.0", 1), (None, None, "-2", -2)],
)
def test_the_type_of_a_sample(of_all, default, own, expected):
    reader = SampleReader(task_type=of_all, default_task_type=default)
    assert reader({"instruction": "Who?", "output": "Me.", "task_type": own}).task_type == expected


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"instruction": ...}, "instruction", "missing"),
        ({"instruction": " \n"}, "instruction", r"got ' \n' (str)"),
        ({"input": "a\ud800b"}, "input", r"'\ud800'"),
        ({"output": None}, "output", "missing; the sample has ['instruction', 'input', 'task_type']"),
        ({"task_type": ...}, "task_type", "default_task_type"),
        ({"task_type": "qa"}, "task_type", "got 'qa' (str)"),
        ({"task_type": float("nan")}, "task_type", "got nan (float)"),
        ({"task_type": 2**63}, "task_type", "expected an integer"),
        ({"task_type": 2}, "task_type", "types 0, 1"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages", "turn 2: expected one of"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages", "turn 2: content: missing"),
        ({"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]}, "messages", "turn 1: content: expected"),
        ({"messages": USER}, "messages", "expected a list of turns"),
        ({"messages": [USER, USER, ANSWER]}, "messages", "got user, user, assistant"),
        ({"messages": [USER]}, "messages", "got no answer"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, "conversations", "turn 2: value: "),
    ],
)
def test_a_fault_names_its_field(row, changes, field, words):
    (problem,) = SampleReader()(row(**changes), task_types=[1, 0, 1])
    assert problem.startswith(f", field {field!r}: ")
    assert words in problem


def test_every_faulty_field_is_named(row):
    problems = SampleReader()(row(instruction="", output="", task_type=...))
    assert [problem.split("'")[1] for problem in problems] == ["task_type", "instruction", "output"]


def test_what_is_no_sample():
    (problem,) = SampleReader(task_type=0)(["a"])
    assert "(list)" in problem
    (problem,) = SampleReader(task_type=0)({"question": "Who?", "answer": "Me."})
    assert "['question', 'answer']" in problem
    assert "columns: {instruction: question, output: answer}" in problem
