"""The scale as a whole, on made-up data; on the real data where they are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from experiments.knowledge_forgetting.real import scale as module
from experiments.knowledge_forgetting.real.cloze import chosen_relations, clozes
from experiments.knowledge_forgetting.real.downstream import boolq
from experiments.knowledge_forgetting.real.items import Item
from experiments.knowledge_forgetting.real.scale import MEASURES, RealScale
from experiments.knowledge_forgetting.real.score import score
from tests.experiments.knowledge_forgetting.real.conftest import SMOLLM2, TINY


@pytest.fixture
def scale(data, monkeypatch):
    monkeypatch.setattr(module, "chosen_relations", lambda: ["P17", "P36"])
    return RealScale(data, TINY)


def test_every_set_is_judged(scale):
    assert set(MEASURES) == {*scale.knowledge, *scale.downstream} == set(scale.items)


@pytest.mark.slow
def test_score(scale):
    model, tokenizer = scale.base()
    hits = scale.score(model, tokenizer, "validation")
    assert list(hits) == [*scale.knowledge, *scale.downstream]
    for name, of_set in hits.items():
        assert of_set.dtype == np.bool_
        assert len(of_set) == len(scale.items[name]["validation"]) > 0


def test_nothing_that_is_scored_is_trained_on(scale):
    rows = {(row["instruction"], row["input"]) for row in scale.train_rows(4_000, 0)}
    for name in scale.downstream:
        for items in scale.items[name].values():
            assert not rows & {(item.prompt, item.input) for item in items}
    texts = {item.prompt for name in scale.knowledge for items in scale.items[name].values() for item in items}
    asked = {text.removeprefix("Question: ").removesuffix("\nAnswer:") for text in texts}
    assert not asked & {instruction.removeprefix("Answer the question: ") for instruction, _ in rows}


def test_tasks_that_are_asked_somewhere_else_are_not_trained_on(data):
    train, test = boolq(data, "train"), boolq(data, "test")
    left, items = module._divided([*train, test[3], train[0]], test)
    assert [row for row, _ in left] == [row for row, _ in train[module.HELD_OUT :]]
    assert items["test"] == [item for _, item in test]


def test_smaller_sets_begin_the_larger(scale, data):
    larger = RealScale(data, TINY, "gpu")
    for name, splits in scale.items.items():
        for split, items in splits.items():
            assert larger.items[name][split][: len(items)] == items


def test_each_size_has_results_of_its_own(scale, data):
    assert (scale.name, RealScale(data, TINY, "gpu").name) == ("real", "real_gpu")


def test_the_default_model_does_not_depend_on_where_one_is(data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert RealScale(data).model == SMOLLM2


def test_what_a_guess_has_right(scale):
    knowledge, downstream = scale.knowledge, scale.downstream
    quarters = dict.fromkeys((*knowledge, "openbookqa", "arc"), 0.25)
    assert scale.chance == {**quarters, "boolq": 0.5, "gsm8k": 0.0, "reading": 0.0}
    assert set(scale.chance) == {*knowledge, *downstream}


def test_chance_is_the_commonest_answer_or_that_of_a_guess():
    same = [Item("q", ("true", "false"), right) for right in (0, 0, 0, 1)]
    others = [Item("q", ("a", "b", "c", "d")), Item("q", ("e", "f"))]
    assert module._chance(same, "total") == 0.75
    assert module._chance(others, "gain") == 0.375
    assert module._chance(same, "begins") == 0.0


def test_data_are_read_once_for_all_runs_of_a_process(scale, data, monkeypatch):
    first, asked = scale.train_rows(20, 0), scale.asked()
    monkeypatch.setattr(module, "clozes", pytest.fail)
    monkeypatch.setattr(module.tasks, "read", pytest.fail)
    again = pickle.loads(pickle.dumps(RealScale(data, TINY)))
    assert (again.train_rows(20, 0), again.asked()) == (first, asked)


def test_rows(scale):
    rows = scale.train_rows(100, 0)
    assert rows == scale.train_rows(100, 0)
    assert sum(row["task_type"] for row in rows) == 25


def test_replayed_facts_are_of_subjects_that_no_set_asks_for(scale):
    rows = scale.train_rows(100, 0, replay=0.4)
    told = [row for row in rows if not row["instruction"].startswith("Answer the question: ") and row["task_type"] == 1]
    assert len(told) == 10
    prompts = {item.prompt for items in scale.items["trex"].values() for item in items}
    assert not prompts & {row["instruction"] for row in told}
    assert sum(row["task_type"] for row in rows) == 25


def test_real_sets_have_their_sizes(real_data):
    scale = RealScale(real_data, SMOLLM2, "gpu")
    counts = {name: len(splits["test"]) for name, splits in scale.items.items()}
    assert counts["trex"] >= 3_000
    assert min(counts.values()) >= 200
    smaller = RealScale(real_data, SMOLLM2)
    assert all(len(of["validation"]) >= 80 and len(of["test"]) >= 120 for of in smaller.items.values())
    questions, left_out = module.train_questions(real_data)
    assert (len(questions), left_out) == (2_011, {"asked": 2, "names_a_subject": 794})


def test_the_real_base_knows_facts(real_data):
    scale = RealScale(real_data, SMOLLM2)
    model, tokenizer = scale.base()
    right = score(model, tokenizer, clozes(real_data, chosen_relations(), "validation")[:96], "total", progress=False)
    assert right.mean() > 0.6  # 0.25 by chance
