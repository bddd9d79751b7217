"""Files of questions: the formats of the training with choices and further answers, and clozes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramoe.data import DatasetError
from loramoe.evaluation.questions import check_question, read_questions

SAMPLE = {"instruction": "Who?", "input": "", "output": "Ada", "task_type": 1}
CLOZE = {"prompt": "Her name is", "answer": "Ada"}
USER = [{"role": "user", "content": "Who?"}]


def question(**changes: Any) -> dict[str, Any]:
    found = {"messages": USER, "answers": ["Ada"], "choices": [], "task_type": None, "cloze": False}
    return {**found, **changes}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**SAMPLE, "more": 1, "prompt": "of another tool"}, question(task_type=1)),
        (
            {**SAMPLE, "choices": ["Bob", "Ada"], "answers": ["Ada L.", "Ada"]},
            question(task_type=1, choices=["Bob", "Ada"], answers=["Ada", "Ada L."]),
        ),
        ({"messages": [*USER, {"role": "assistant", "content": "Ada"}]}, question()),
        (CLOZE, question(messages=[{"role": "user", "content": "Her name is"}], cloze=True)),
    ],
)
def test_questions(value: dict[str, Any], expected: dict[str, Any]) -> None:
    assert check_question(value) == expected


@pytest.mark.parametrize("form", [SAMPLE, CLOZE])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": "Ada"}, "'choices': expected a list of texts"),
        ({"answers": 3}, "'answers': expected a list of texts"),
        ({"answers": ["Ada", " "]}, "'answers': expected a list of texts"),
        ({"choices": ["Ada"]}, "'choices': expected two or more different texts"),
        ({"choices": ["Bob", "Cyd"]}, "one of them the answer 'Ada'"),
        ({"choices": ["Ada", " Ada"]}, "different texts"),
        ({"task_type": "one"}, "'task_type': expected an integer, got 'one'"),
    ],
)
def test_faults_are_named(form: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    (problem,) = check_question({**form, **fields})
    assert message in problem


def test_faults_are_found_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{json.dumps(CLOZE)}\n{{"prompt": "Her name is"}}\n')
    with pytest.raises(DatasetError, match=r"questions.jsonl, line 2, field 'answer': missing"):
        read_questions(file)
    file.write_text(json.dumps(CLOZE))
    assert read_questions(file)[0]["where"].endswith("line 1")
