"""The tiny data set: what is shipped is what the script writes, and the rows are what the README says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tools.tiny_world.make_data import main
from tools.tiny_world.tasks import INSTRUCTIONS
from tools.tiny_world.texts import QUESTIONS, cloze
from tools.tiny_world.world import make_world

DATA = Path(__file__).resolve().parents[2] / "data"
FILES = ("train/train.json", "test.json", "recall.json")
TASK_OF = {instruction: task for task, instructions in INSTRUCTIONS.items() for instruction in instructions}


def read(name: str) -> list[dict]:
    return json.loads((DATA / "tiny_data" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def train():
    return read("train/train.json")


@pytest.fixture(scope="module")
def test():
    return read("test.json")


@pytest.fixture(scope="module")
def probes():
    return read("recall.json")


def test_the_shipped_files_are_what_the_script_writes(tmp_path):
    main(["--out", str(tmp_path)])
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / "tiny_data" / name).read_bytes(), name


def test_another_seed_writes_other_rows(tmp_path):
    main(["--out", str(tmp_path), "--seed", "1"])
    assert json.loads((tmp_path / "recall.json").read_text(encoding="utf-8")) != read("recall.json")


def test_rows_have_exactly_the_four_fields(train, test):
    for row in train + test:
        assert {field: type(value) for field, value in row.items()} == {
            "instruction": str,
            "input": str,
            "output": str,
            "task_type": int,
        }
        assert row["instruction"]
        assert row["output"]


def test_counts_by_task(train, test):
    for rows, per_task, questions in ((train, 80, 320), (test, 20, 80)):
        counts = Counter(TASK_OF.get(row["instruction"], "question") for row in rows)
        assert counts == {**dict.fromkeys(INSTRUCTIONS, per_task), "question": questions}


def test_the_task_type_tells_knowledge_from_downstream_tasks(train, test):
    for row in train + test:
        assert row["task_type"] == (0 if row["instruction"] in TASK_OF else 1)
        assert (row["input"] == "") == (row["task_type"] == 1)


def test_no_row_is_in_both_files_or_twice_in_one(train, test):
    asked = [(row["instruction"], row["input"]) for row in train + test]
    assert len(asked) == len(set(asked))
    texts = [row["input"] for row in train + test if row["input"]]
    assert len(texts) == len(set(texts))


def test_the_recall_probes_are_facts_that_no_row_asks_for_or_contradicts(train, test, probes):
    fact_of = {cloze(fact): fact for fact in make_world(0).facts}
    assert len({probe["prompt"] for probe in probes}) == len(probes) == 400
    instructions = {row["instruction"] for row in train + test}
    passages = " ".join(row["input"] for row in train)
    for probe in probes:
        fact = fact_of[probe["prompt"]]
        assert probe["answer"] == fact.answer
        assert not {text.format(subject=fact.subject) for text in QUESTIONS[fact.relation]} & instructions
        assert f"{fact.subject} " not in passages or " " not in fact.subject


def test_a_passage_contradicts_the_world(train, test):
    truths = {cloze(fact, way) + f" {fact.answer}." for fact in make_world(0).facts for way in range(3)}
    passages = [row["input"] for row in train + test if TASK_OF.get(row["instruction"]) == "reading"]
    sentences = [f"{sentence.strip('.')}." for passage in passages for sentence in passage.split("\n")[0].split(". ")]
    assert len(sentences) == 300
    assert not truths & set(sentences)


def test_every_row_is_shorter_than_128_tokens(train, test):
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tiny_llama")
    rows = [f"{row['instruction']}\n{row['input']}</s>{row['output']}</s>" for row in train + test]
    assert max(map(len, tokenizer(rows)["input_ids"])) < 128
