"""Clozes of facts."""

from __future__ import annotations

import json

from experiments.knowledge_forgetting.real import cloze
from experiments.knowledge_forgetting.real.cloze import (
    SHARES,
    all_relations,
    chosen_relations,
    clozes,
    facts,
    part_of,
    pattern,
    relation_items,
    subjects,
)


def test_pattern_ends_with_the_object():
    assert pattern([{"pattern": "[Y] has [X] ."}, {"pattern": "[X] is in [Y] ."}]) == "[X] is in"
    assert pattern([{"pattern": "The capital of [X] is [Y]."}]) == "The capital of [X] is"
    assert pattern([{"pattern": "[X] is a [Y] by profession."}, {"pattern": "[Y] of [X]."}]) is None


def test_relations_without_such_a_pattern_are_left_out(data):
    assert all_relations(data) == ["P17", "P36"]


def test_items_are_facts_among_wrong_ones(data):
    known = facts(data, "P17")
    assert "Town 0" not in known  # it has two objects
    items = relation_items(data, "P17", "test")
    assert len(items) > 100
    for item in items:
        assert item.candidates[item.right] == known[item.prompt.removesuffix(" is located in")]
        assert len(set(item.candidates)) == 4
    assert {item.right for item in items} == {0, 1, 2, 3}


def test_a_subject_is_in_one_part_whatever_the_relation(data):
    parts = [[item.prompt for item in relation_items(data, "P17", part)] for part in SHARES]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 199
    shares = [sum(part_of(str(n)) == part for n in range(5_000)) / 5_000 for part in SHARES]
    assert all(abs(share - wanted) < 0.03 for share, wanted in zip(shares, SHARES.values(), strict=True))


def test_relations_take_turns(data):
    items = clozes(data, ["P17", "P36"], "validation")
    assert [item.prompt.startswith("The capital of") for item in items[:4]] == [False, True, False, True]
    assert len(items) == sum(len(relation_items(data, name, "validation")) for name in ("P17", "P36"))


def test_subjects_that_are_asked_for(data):
    asked = subjects(data, ["P36"])
    assert asked == {name for name in facts(data, "P36") if part_of(name) in ("validation", "test")}


def test_relations_were_chosen_by_the_rule():
    told = json.loads(cloze.CHOICE.read_text(encoding="utf-8"))
    good = [name for name, of in told["selection"].items() if of["items"] >= 20 and of["accuracy"] >= 0.5]
    assert chosen_relations() == good


def test_replayed_facts_tell_nothing_that_is_asked_from_the_other_side(tmp_path):
    names = [f"name {n}" for n in range(200)]
    kept, other = (next(n for n in names if cloze.part_of(n) == part) for part in ("selection", "test"))
    free = next(n for n in names if cloze.part_of(n) == "selection" and n != kept)
    for folder, relation, lines in (
        ("facts", "P1", [{"sub_label": kept, "obj_label": other}, {"sub_label": free, "obj_label": "x"}]),
        ("facts", "P2", [{"sub_label": other, "obj_label": kept}]),
        ("patterns", "P1", [{"pattern": "[X] is the capital of [Y]."}]),
        ("patterns", "P2", [{"pattern": "The capital of [X] is [Y]."}]),
    ):
        file = tmp_path / "trex" / folder / f"{relation}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = cloze.statement_rows(tmp_path, ["P1", "P2"])
    assert row == {"instruction": f"{free} is the capital of", "input": "", "output": "x", "task_type": 1}
