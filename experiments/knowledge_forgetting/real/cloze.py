"""T-REx facts as clozes with four candidates: "The capital of Egypt is" Cairo, Lima, Oslo or Rome?

Subjects, not facts, are split into parts, so that nothing of a subject is in two of them. A 135M model does not know
all relations: those are kept on which the base model is clearly above chance in the part `selection`, which no set of
items contains; its facts are those that a recipe with `replay` trains on. `relations.py` makes that choice and writes
it down.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final, Literal

from experiments.knowledge_forgetting.real.files import read, shuffled
from experiments.knowledge_forgetting.real.items import Item
from experiments.knowledge_forgetting.scale import Row

Part = Literal["selection", "validation", "test"]
SHARES: Final[dict[Part, float]] = {"selection": 0.15, "validation": 0.15, "test": 0.70}
CANDIDATES: Final = 4
CHOICE: Final = Path(__file__).with_name("relations.json")


def chosen_relations() -> list[str]:
    """The relations that `relations.py` chose."""
    relations: list[str] = json.loads(CHOICE.read_text(encoding="utf-8"))["chosen"]
    return relations


def all_relations(data: Path) -> list[str]:
    """Relations with facts and a pattern that ends with the object."""
    names = sorted((file.stem for file in (data / "trex/patterns").glob("P*.jsonl")), key=lambda name: int(name[1:]))
    return [name for name in names if pattern(read(data, f"trex/patterns/{name}.jsonl")) is not None]


def pattern(entries: Sequence[dict[str, Any]]) -> str | None:
    """The first pattern that ends with the object, without that object, such as "The capital of [X] is"."""
    ends = (re.fullmatch(r"([^\[]*\[X\][^\[]*?)\s*\[Y\]\s*\.?\s*", entry["pattern"]) for entry in entries)
    return next((match[1] for match in ends if match), None)


def clozes(data: Path, relations: Sequence[str], part: Part) -> list[Item]:
    """Items of some relations, in turn, so that any beginning of the list has all of them equally."""
    turns = zip_longest(*(relation_items(data, relation, part) for relation in relations))
    return [item for item in chain.from_iterable(turns) if item is not None]


def statement_rows(data: Path, relations: Sequence[str]) -> list[Row]:
    """Facts as rows of training, of task type 1: those of the part `selection`, about whose subjects no set asks.

    Left out are those that tell such a fact from the other side: that Cairo is the capital of Egypt.
    """
    known = [(relation, subject, answer) for relation in relations for subject, answer in facts(data, relation).items()]
    asked = {(subject, answer) for _, subject, answer in known if part_of(subject) != "selection"}
    beginnings = {relation: pattern(read(data, f"trex/patterns/{relation}.jsonl")) for relation in relations}
    return [
        Row(instruction=str(beginnings[relation]).replace("[X]", subject), input="", output=answer, task_type=1)
        for relation, subject, answer in known
        if part_of(subject) == "selection" and (answer, subject) not in asked
    ]


def relation_items(data: Path, relation: str, part: Part) -> list[Item]:
    """Items of one relation in one part, in a fixed shuffled order; wrong candidates are drawn uniformly."""
    beginning = pattern(read(data, f"trex/patterns/{relation}.jsonl"))
    assert beginning is not None, relation  # `all_relations` leaves such ones out
    known = facts(data, relation)
    pool = sorted(set(known.values()))
    if len(pool) < CANDIDATES:
        return []
    names = [name for name in shuffled(sorted(known), relation) if part_of(name) == part]
    return [_item(beginning.replace("[X]", name), known[name], pool) for name in names]


def facts(data: Path, relation: str) -> dict[str, str]:
    """The objects of those subjects of a relation that have one."""
    objects: dict[str, set[str]] = {}
    for fact in read(data, f"trex/facts/{relation}.jsonl"):
        objects.setdefault(fact["sub_label"], set()).add(fact["obj_label"])
    return {subject: min(its) for subject, its in objects.items() if len(its) == 1}


def subjects(data: Path, relations: Sequence[str]) -> set[str]:
    """Subjects that items of the splits ask for: of those relations, outside the part `selection`."""
    return {name for relation in relations for name in facts(data, relation) if part_of(name) != "selection"}


def part_of(subject: str) -> Part:
    """Which part of the split a subject is in, whatever the relation."""
    draw, (first, second, third) = random.Random(f"part:{subject}").random(), SHARES
    if draw < SHARES[first]:
        return first
    return second if draw < SHARES[first] + SHARES[second] else third


def _item(prompt: str, answer: str, pool: Sequence[str]) -> Item:
    others = shuffled([text for text in pool if text != answer], prompt)[: CANDIDATES - 1]
    candidates = tuple(shuffled([answer, *others], prompt, "order"))
    return Item(prompt, candidates, candidates.index(answer), cloze=True)
