"""The rows and the items of the tiny scale: nothing that is asked was trained on."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from experiments.knowledge_forgetting.tiny.scale import ITEMS_PER_TASK, TinyScale, cloze, question
from experiments.knowledge_forgetting.tiny.skills import LETTERS, LIST_LENGTH, SKILLS
from experiments.knowledge_forgetting.tiny.tasks import INSTRUCTIONS, TASKS
from loramoe.data import ReleaseTemplate, conversation

TOKENIZER = Path(__file__).parents[4] / "data" / "tiny_llama"


@pytest.fixture(scope="module")
def scale() -> TinyScale:
    return TinyScale()


def test_a_quarter_of_the_rows_are_questions_and_every_task_has_its_share(scale: TinyScale):
    rows = scale.train_rows(800, seed=0)
    assert Counter(row["task_type"] for row in rows) == {1: 200, 0: 600}
    task_of = {words: task for task, wordings in INSTRUCTIONS.items() for words in wordings}
    assert Counter(task_of[row["instruction"]] for row in rows if row["task_type"] == 0) == dict.fromkeys(TASKS, 100)


def test_rows_follow_from_the_seed(scale: TinyScale):
    assert scale.train_rows(100, 1) == scale.train_rows(100, 1)
    assert scale.train_rows(100, 1) != scale.train_rows(100, 2)


def test_what_is_replayed_stands_in_place_of_questions_and_is_told_as_in_pretraining(scale: TinyScale):
    rows = [row for row in scale.train_rows(800, 0, replay=0.5) if row["task_type"] == 1]
    said = Counter(row["instruction"] for row in rows)
    assert sum(said.values()) == 200
    replayed = {tell(fact): fact.answer for fact in scale.split.asked for tell in (cloze, question)}
    again = [row for row in rows if row["instruction"] in replayed]
    assert len(again) == 100
    assert all(replayed[row["instruction"]] == row["output"] for row in again)
    assert 30 < sum(row["instruction"].endswith("?") for row in again) < 70


@pytest.mark.slow
def test_items_and_rows_are_the_same_in_every_process(scale: TinyScale):
    code = "from experiments.knowledge_forgetting.tiny.scale import TinyScale as T; s = T(); "
    code += "print(s.asked(), s.train_rows(50, 3))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TOKENIZER.parents[1],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{scale.asked()} {scale.train_rows(50, 3)}\n"


def test_no_text_of_an_item_is_trained_on(scale: TinyScale):
    asked = {text for split in scale.items.values() for items in split.values() for text, _, _ in items}
    assert len(asked) == len(TASKS) * sum(ITEMS_PER_TASK.values()), "no item is there twice"
    assert not asked & {row["input"] for row in scale.train_rows(3_000, 0)}


def test_no_subject_that_knowledge_is_tested_on_is_in_the_rows(scale: TinyScale):
    parts = [{fact.subject for fact in scale.tested[split]} for split in ("validation", "test")]
    assert not parts[0] & parts[1]
    subjects = {subject for subject in parts[0] | parts[1] if subject in scale.world.people}
    said = " ".join(f"{row['instruction']} {row['input']}" for row in scale.train_rows(3_000, 0))
    assert not [subject for subject in subjects if subject in said]
    assert len(parts[0]) + len(parts[1]) == round(0.7 * len({fact.subject for fact in scale.world.facts}))


def test_letters_are_one_token_each():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert all(len(tokenizer.tokenize(letter)) == 1 for letter in LETTERS)


@pytest.mark.parametrize("name", ["sorting", "reversing"])
def test_tasks_on_letters(name: str, scale: TinyScale):
    rng = random.Random(0)
    for _ in range(20):
        text, answer = TASKS[name](rng, scale.world, ())
        letters = text.split()
        assert len(set(letters)) == LIST_LENGTH
        assert answer.split() == (sorted(letters) if name == "sorting" else letters[::-1])


def test_no_skill_is_a_task(scale: TinyScale):
    rng = random.Random(0)
    instructions = [words for wordings in INSTRUCTIONS.values() for words in wordings]
    for skill in SKILLS:
        prompt, answer = skill(rng, scale.world)
        assert prompt
        assert answer
        assert not any(words in prompt for words in instructions)


def test_an_item_is_asked_as_a_row_is_trained_on(scale: TinyScale):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    text, instruction, answer = scale.items["test"]["sorting"][0]
    (encoded,) = ReleaseTemplate(tokenizer).encode([conversation(instruction, text, answer)])
    said = tokenizer.decode(encoded.input_ids)
    assert said == f"<s> {instruction}\n{text}</s> {answer}</s>"


def test_no_fact_that_knowledge_is_tested_on_is_told_from_the_other_side(scale: TinyScale):
    told = {(fact.answer, fact.subject) for fact in scale.split.asked}
    assert not [fact for facts in scale.tested.values() for fact in facts if (fact.subject, fact.answer) in told]
