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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**SAMPLE, "more": 1, "prompt": "of another tool"}, {"task_type": 1}),
        (
            {**SAMPLE, "choices": ["Bob", "Ada"], "answers": ["Ada L.", "Ada"]},
            {"task_type": 1, "choices": ["Bob", "Ada"], "answers": ["Ada", "Ada L."]},
        ),
        ({"messages": [*USER, {"role": "assistant", "content": "Ada"}]}, {}),
        (CLOZE, {"messages": [{"role": "user", "content": "Her name is"}], "cloze": True}),
    ],
)
def test_questions(value: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = {"messages": USER, "answers": ["Ada"], "choices": [], "task_type": None, "cloze": False}
    assert check_question(value) == {**plain, **expected}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**SAMPLE, "choices": "Ada"}, "'choices': expected a list of texts"),
        ({**SAMPLE, "answers": ["Ada", " "]}, "'answers': expected a list of texts"),
        ({**SAMPLE, "choices": ["Ada"]}, "'choices': expected two or more different texts"),
        ({**CLOZE, "choices": ["Bob", "Cyd"]}, "one of them the answer 'Ada'"),
        ({**CLOZE, "choices": ["Ada", " Ada"]}, "different texts"),
        ({**CLOZE, "task_type": "one"}, "'task_type': expected an integer, got 'one'"),
    ],
)
def test_faults_are_named(value: dict[str, Any], message: str) -> None:
    (problem,) = check_question(value)
    assert message in problem


def test_faults_are_found_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{json.dumps(CLOZE)}\n{{"prompt": "Her name is"}}\n')
    with pytest.raises(DatasetError, match=r"questions.jsonl, line 2, field 'answer': missing"):
        read_questions(file)
    file.write_text(json.dumps(CLOZE))
    assert read_questions(file)[0]["where"].endswith("line 1")
