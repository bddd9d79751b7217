"""The invented world: the same for the same seed, consistent, and free of ambiguous answers."""

from __future__ import annotations

import random
from itertools import chain, pairwise

import pytest

from tools.tiny_world.texts import QUESTIONS, STATEMENTS, cloze, question, statement, stranger
from tools.tiny_world.world import Fact, make_world, split_world


@pytest.fixture(scope="module")
def world():
    return make_world(0)


def test_a_seed_gives_one_world_and_another_seed_another(world):
    assert make_world(0) == world
    assert not set(make_world(1).people) & set(world.people)


def test_there_are_five_thousand_facts_and_each_question_has_one_answer(world):
    assert len(world.facts) == 5000
    assert len({(fact.subject, fact.relation) for fact in world.facts}) == 5000


def test_no_answer_starts_another_answer_of_its_relation(world):
    for answers in world.answers.values():
        assert not [pair for pair in pairwise(answers) if pair[1].startswith(pair[0])]


def test_a_capital_lies_in_its_country(world):
    country_of = {fact.subject: fact.answer for fact in world.facts if fact.relation == "country"}
    capitals = [fact for fact in world.facts if fact.relation == "capital"]
    assert len(capitals) == 50
    assert all(country_of[fact.answer] == fact.subject for fact in capitals)


def test_the_parts_of_the_world_share_no_subject_and_leave_nothing_out(world):
    parts = split_world(world, 0)
    assert sorted(chain(*parts)) == sorted(world.facts)
    subjects = [{fact.subject for fact in part} for part in parts]
    assert sum(map(len, subjects)) == len(set.union(*subjects))
    assert [round(len(part) / 5000, 1) for part in parts] == [0.3, 0.3, 0.4]


def test_every_relation_has_its_wordings(world):
    relations = {fact.relation for fact in world.facts}
    assert set(STATEMENTS) == relations == set(QUESTIONS)


def test_a_fact_in_words():
    fact = Fact("the Belax clock", "material", "brass")
    assert cloze(fact) == "The Belax clock is made of"
    assert statement(fact, 2) == "The Belax clock is built from brass."
    assert question(fact, 1) == "Of which material is the Belax clock?"


def test_a_stranger_is_nobody_of_the_world(world):
    rng = random.Random(0)
    assert not {stranger(rng, world) for _ in range(2000)} & set(world.people)
