"""Closed-book questions."""

from __future__ import annotations

from experiments.knowledge_forgetting.real.questions import (
    natural_questions,
    question_items,
    question_rows,
    web_questions,
    without_overlap,
)
from tests.experiments.knowledge_forgetting.real.conftest import write


def test_wrong_candidates_answer_questions_that_begin_alike(data):
    items = question_items(web_questions(data, "test"))
    assert len(items) == 40
    for item in items:
        kinds = {candidate.split()[0] for candidate in item.candidates}
        assert kinds == {item.prompt.split()[2]}  # "Question: what river …"
        assert len(set(item.candidates)) == 4
        assert item.candidates[item.right].split()[1] == item.prompt.split("?")[0].split()[-1]


def test_no_accepted_answer_is_a_wrong_candidate():
    questions = [("who am i?", ("A", "B")), *((f"who is {n}?", (name,)) for n, name in enumerate("BCDE"))]
    assert set(question_items(questions)[0].candidates) == {"A", "C", "D", "E"}


def test_gain_is_told_against_the_prompt_without_question(data):
    (item, *_) = question_items(natural_questions(data))
    assert item.unasked == "Question:\nAnswer:"
    assert item.prompt.startswith("Question: who is king")
    assert item.cloze


def test_unanswerable_questions_are_left_out(tmp_path):
    answers = [["http://page"], [], ["x" * 51], ["x" * 50]]
    entries = [{"qId": str(n), "qText": f"q{n}?", "answers": its} for n, its in enumerate(answers)]
    write(tmp_path / "webquestions/val.json", entries)
    assert [question for question, _ in web_questions(tmp_path, "val")] == ["q3?"]


def test_rows_are_of_type_1():
    assert question_rows([("who?", ("me", "you"))]) == [
        {"instruction": "Answer the question: who?", "input": "", "output": "me", "task_type": 1}
    ]


def test_overlap_is_left_out():
    train = [("who is it?", ("a",)), ("where is New York's bay?", ("b",)), ("where is new yorkshire?", ("c",))]
    kept, left_out = without_overlap(train, [("it is who", ("z",))], {"New York"})
    assert kept == [train[2]]
    assert left_out == {"asked": 1, "names_a_subject": 1}
