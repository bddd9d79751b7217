"""Questions: the data format with choices and further answers, sentences to be finished, what is wrong with rows."""

from __future__ import annotations

import pytest

from loramoe.evaluation import Example
from loramoe.evaluation.example import check_example

ROW = {"instruction": "Who?", "input": "", "output": "Ada", "task_type": 1}
CLOZE = {"prompt": "Her name is", "answer": "Ada"}


def test_a_row_of_the_training_is_a_question() -> None:
    assert check_example({**ROW, "more": 1}) == Example("Who?", "", "Ada", ("Ada",), (), 1)


def test_a_question_may_leave_its_type_out():
    example = check_example({"instruction": "Who?", "output": "Ada"})
    assert (example.output, example.task_type) == ("Ada", None)


def test_choices_and_further_answers() -> None:
    example = check_example({**ROW, "choices": ["Bob", "Ada"], "answers": ["Ada L.", "Ada"]})
    assert example == Example("Who?", "", "Ada", ("Ada", "Ada L."), ("Bob", "Ada"), 1)
    assert example.candidates == ("Bob", "Ada")
    assert Example("Who?", "", "Ada", ("Ada", "Ada L."), (), 1).candidates == ("Ada",)


def test_a_sentence_to_be_finished() -> None:
    assert check_example(CLOZE) == Example("Her name is", "", "Ada", ("Ada",), (), None, cloze=True)
    full = check_example({**CLOZE, "task_type": 1, "choices": ["Ada", "Bob"], "answers": ["A."]})
    assert full == Example("Her name is", "", "Ada", ("Ada", "A."), ("Ada", "Bob"), 1, cloze=True)


def test_an_instruction_beside_a_prompt_is_a_row_of_the_training() -> None:
    assert check_example({**ROW, "prompt": "of another tool"}) == check_example(ROW)


@pytest.mark.parametrize("form", [ROW, CLOZE])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": "Ada"}, "field 'choices': expected a list of texts, none blank, got 'Ada' (str)"),
        ({"choices": ["Ada", 3]}, "field 'choices': expected a list of texts, none blank"),
        ({"answers": ["Ada", " "]}, "field 'answers': expected a list of texts, none blank"),
        ({"choices": ["Ada"]}, "field 'choices': expected two or more texts, no two of them equal"),
        ({"choices": ["Bob", "Cyd"]}, "one of them the answer 'Ada' (str); got ['Bob', 'Cyd'] (list). Correct it."),
        ({"choices": ["Ada", "Bob", "Bob"]}, "no two of them equal"),
        ({"choices": ["Ada", " Ada"]}, "no two of them equal once stripped"),
        ({"task_type": "one"}, "field 'task_type': expected an integer, got 'one' (str)"),
    ],
)
def test_what_is_wrong_is_told(form: dict, fields: dict, message: str) -> None:
    (problem,) = check_example({**form, **fields})
    assert message in problem


def test_a_cloze_needs_both_texts() -> None:
    assert [problem.split(":")[0] for problem in check_example({"prompt": " "})] == [
        ", field 'prompt'",
        ", field 'answer'",
    ]


def test_what_is_no_row_at_all() -> None:
    assert "expected an object" in check_example([1])[0]
    assert ", field 'output': missing" in check_example({"instruction": "a", "task_type": 1})[0]
