"""Closed-book questions: WebQuestions and Natural Questions with four candidates, and WebQuestions to train on.

The three wrong candidates are answers to other questions that begin alike ("what country …"), so that they are of the
right kind as a rule. Items are put in plain text, which the base model answers best: it has never seen the template of
the training, and with it an adapter would be credited for learning the template. Rows of training are of task type 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from experiments.knowledge_forgetting.real.files import read, shuffled
from experiments.knowledge_forgetting.real.items import Item
from experiments.knowledge_forgetting.scale import Row

INSTRUCTION: Final = "Answer the question:"
PLAIN: Final = "Question: {}\nAnswer:"
CANDIDATES: Final = 4
LONGEST_ANSWER: Final = 50  # characters; longer ones are sentences, or addresses of pages
Question = tuple[str, tuple[str, ...]]
"""A question and its accepted answers."""


def web_questions(data: Path, file: str) -> list[Question]:
    """Questions of a file of WebQuestions."""
    entries = read(data, f"webquestions/{file}.json")
    return _answerable((entry["qText"], entry["answers"]) for entry in entries)


def natural_questions(data: Path) -> list[Question]:
    """All questions of NQ-open's development file, in a fixed shuffled order."""
    entries = read(data, "nq_open/NQ-open.dev.jsonl")
    return shuffled(_answerable((f"{entry['question']}?", entry["answer"]) for entry in entries), "nq_open")


def _answerable(questions: Iterable[tuple[str, Sequence[str]]]) -> list[Question]:
    """Those whose first answer can be one."""
    kept = ((question, tuple(answers)) for question, answers in questions if answers)
    return [(q, answers) for q, answers in kept if len(answers[0]) <= LONGEST_ANSWER and "http" not in answers[0]]


def question_items(questions: Sequence[Question]) -> list[Item]:
    """An item for each question; wrong candidates come from the other questions."""
    pools: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        for beginning in _beginnings(question[0]):
            pools[beginning].append(question)
    return [_item(question, pools) for question in questions]


def _beginnings(question: str) -> tuple[str, str, str]:
    """Its first two words, its first, and nothing: from like to unlike."""
    words = question.lower().split()
    return " ".join(words[:2]), words[0], ""


def _item(question: Question, pools: dict[str, list[Question]]) -> Item:
    text, answers = question
    for beginning in _beginnings(text):
        others = list(dict.fromkeys(first for _, (first, *_) in pools[beginning] if first not in answers))
        if len(others) >= CANDIDATES - 1:
            break
    candidates = tuple(shuffled([answers[0], *shuffled(others, text)[: CANDIDATES - 1]], text, "order"))
    right = candidates.index(answers[0])
    return Item(PLAIN.format(text), candidates, right, unasked=PLAIN.format("").replace(" \n", "\n"), cloze=True)


def question_rows(questions: Sequence[Question]) -> list[Row]:
    """Rows of training: the first of the accepted answers is the one to learn."""
    return [Row(instruction=f"{INSTRUCTION} {q}", input="", output=a[0], task_type=1) for q, a in questions]


def without_overlap(
    questions: Sequence[Question], asked: Sequence[Question], subjects: Collection[str]
) -> tuple[list[Question], dict[str, int]]:
    """Leaves out what would teach answers of the knowledge sets.

    Args:
        questions: Questions to train on.
        asked: Questions of the sets, validation and test.
        subjects: Subjects of the facts that are asked for, validation and test.

    Returns:
        The questions left, and how many were left out because they are asked (the same words in any order), and because
        they name a subject.
    """
    known = {_bag(question) for question, _ in asked}
    names = {tuple(_words(subject)) for subject in subjects}
    fresh = [question for question in questions if _bag(question[0]) not in known]
    kept = [question for question in fresh if not _names_one(question[0], names)]
    return kept, {"asked": len(questions) - len(fresh), "names_a_subject": len(fresh) - len(kept)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower().replace("'s", ""))


def _bag(text: str) -> frozenset[str]:
    return frozenset(_words(text))


def _names_one(question: str, names: Collection[tuple[str, ...]]) -> bool:
    words = _words(question)
    spans = (tuple(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1))
    return any(span in names for span in spans)
