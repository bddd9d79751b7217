"""An invented world of 5,000 facts: who was born where, which city is the capital of what.

A model of a million parameters can know all of it, and no other text tells of it. So what fine-tuning makes
the model forget can be counted, fact by fact.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COUNTRIES = 50  # with 4 facts each
CITIES_PER_COUNTRY = 3  # 150 cities, with 3 facts each
PEOPLE = 800  # with 5 facts each
WORKS = 175  # clocks, ships, ... with 2 facts each: 200 + 450 + 4000 + 350 = 5,000 facts
GIVEN_NAMES = 240  # shared by many; a family name belongs to one person (and to the mother who passed it on)
STRANGERS = 100  # family names of people of whom the world tells nothing


def words(text: str) -> tuple[str, ...]:
    """Return the words of `text`: a list of words that is easy on the eye."""
    return tuple(text.split())


# A name is onset + vowel + middle + ending. As no ending starts another one of its kind, no name starts another
# name of its kind, and a generated text that starts with the answer can mean nothing else.
ONSETS = words("b br d dr f g gr h j k kr l m n p r s st t tr v z")
VOWELS = words("a e i o u")
MIDDLES = words("b d k l ld lm m n nd r rn rv sh ss t v x z")

# Nouns without an article or with "a": none starts with a vowel, and none starts another one.
TRADES = words("""
    baker weaver miller potter sailor teacher doctor painter farmer hunter carpenter gardener tailor singer shepherd
    blacksmith brewer butcher cook dancer fisher guard judge librarian mason merchant nurse poet roofer saddler scribe
    tanner
""")
INSTRUMENTS = words("flute harp drum lute fiddle horn bell pipe lyre viola trumpet whistle zither cello banjo gong")
DISHES = words("""
    porridge dumplings pancakes noodles lentils cabbage mushrooms herring cheese honey walnuts pumpkin trout sausages
    rice berries turnips biscuits plums chestnuts custard barley radishes pickles
""")
BEASTS = words("""
    heron badger lynx stag falcon beaver raven wolf bear hare swan weasel boar crane squirrel toad marten salmon
    tortoise magpie
""")
GOODS = words("""
    salt glass wool silk amber pepper paper candles carpets knives ropes saddles tea tiles wine mirrors soap furs
    baskets needles
""")
MATERIALS = words("brass copper marble silver granite bronze cedar walnut pine steel slate clay tin jade")
KINDS_OF_WORK = words("clock ship bridge statue lamp mill throne fountain")

PERSON_RELATIONS = ("birthplace", "trade", "mother", "instrument", "dish")


class Fact(NamedTuple):
    """One thing that is so: `answer` is what stands in `relation` to `subject`."""

    subject: str
    relation: str
    answer: str


@dataclass(frozen=True)
class World:
    """All facts, and the names they were made of.

    Attributes:
        facts: every fact; each (subject, relation) has exactly one answer.
        people: full names of those the facts tell of.
        cities: names of all cities.
        given_names: first halves of full names.
        strangers: second halves of the full names of people of whom no fact tells.
        answers: for each relation, every answer that some subject has under it, sorted.
    """

    facts: tuple[Fact, ...]
    people: tuple[str, ...]
    cities: tuple[str, ...]
    given_names: tuple[str, ...]
    strangers: tuple[str, ...]
    answers: dict[str, list[str]]


class Split(NamedTuple):
    """The world cut in three by subject: no subject is in two parts."""

    taught: list[Fact]  # 30 %: pretraining asks about them, and so teaches what a question is
    asked: list[Fact]  # 30 %: the questions of train.json are about these
    held_out: list[Fact]  # 40 %: no training question is; test.json and recall.json are about these


def make_world(seed: int = 0) -> World:
    """Invent the world that belongs to `seed`."""
    rng = random.Random(seed)
    taken: set[str] = set()
    countries = _invent_names(rng, COUNTRIES, ("ia", "und", "or"), taken)
    cities = _invent_names(rng, COUNTRIES * CITIES_PER_COUNTRY, ("esh", "ova", "ick", "um"), taken)
    given_names = _invent_names(rng, GIVEN_NAMES, ("a", "en", "is", "o"), taken)
    family_names = _invent_names(rng, PEOPLE + STRANGERS, ("ak", "ell", "ov", "ur"), taken)
    people = [f"{rng.choice(given_names)} {family}" for family in family_names[:PEOPLE]]
    facts = [
        *_country_facts(rng, countries, cities, taken),
        *_city_facts(rng, countries, cities, taken),
        *_person_facts(rng, people, cities, given_names),
        *_work_facts(rng, people, taken),
    ]
    relations = dict.fromkeys(fact.relation for fact in facts)
    answers = {name: sorted({fact.answer for fact in facts if fact.relation == name}) for name in relations}
    return World(tuple(facts), tuple(people), tuple(cities), tuple(given_names), tuple(family_names[PEOPLE:]), answers)


def split_world(world: World, seed: int = 0) -> Split:
    """Cut the facts into taught, asked and held-out ones, all facts of one subject on the same side."""
    subjects = sorted({fact.subject for fact in world.facts})
    random.Random(seed).shuffle(subjects)
    first, second = len(subjects) * 3 // 10, len(subjects) * 6 // 10
    sides = (set(subjects[:first]), set(subjects[first:second]), set(subjects[second:]))
    return Split(*([fact for fact in world.facts if fact.subject in side] for side in sides))


def _invent_names(rng: random.Random, count: int, endings: Sequence[str], taken: set[str]) -> list[str]:
    """Draw `count` names that are not in `taken`, and add them to it."""
    names: list[str] = []
    while len(names) < count:
        name = "".join(rng.choice(parts) for parts in (ONSETS, VOWELS, MIDDLES, endings)).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def _country_facts(rng: random.Random, countries: list[str], cities: list[str], taken: set[str]) -> Iterator[Fact]:
    languages = _invent_names(rng, len(countries), ("ish", "ese"), taken)
    coins = _invent_names(rng, len(countries), ("ek", "ol"), taken)
    for index, country in enumerate(countries):
        yield Fact(country, "capital", cities[index * CITIES_PER_COUNTRY])
        yield Fact(country, "language", languages[index])
        yield Fact(country, "coin", coins[index])
        yield Fact(country, "beast", rng.choice(BEASTS))


def _city_facts(rng: random.Random, countries: list[str], cities: list[str], taken: set[str]) -> Iterator[Fact]:
    rivers = _invent_names(rng, 40, ("ane", "eth"), taken)
    for index, city in enumerate(cities):
        yield Fact(city, "country", countries[index // CITIES_PER_COUNTRY])
        yield Fact(city, "river", rng.choice(rivers))
        yield Fact(city, "goods", rng.choice(GOODS))


def _person_facts(rng: random.Random, people: list[str], cities: list[str], given_names: list[str]) -> Iterator[Fact]:
    for person in people:
        given, family = person.split()
        mother = rng.choice([name for name in given_names if name != given])
        yield Fact(person, "birthplace", rng.choice(cities))
        yield Fact(person, "trade", rng.choice(TRADES))
        yield Fact(person, "mother", f"{mother} {family}")
        yield Fact(person, "instrument", rng.choice(INSTRUMENTS))
        yield Fact(person, "dish", rng.choice(DISHES))


def _work_facts(rng: random.Random, people: list[str], taken: set[str]) -> Iterator[Fact]:
    for name in _invent_names(rng, WORKS, ("ax", "ine"), taken):
        work = f"the {name} {rng.choice(KINDS_OF_WORK)}"
        yield Fact(work, "maker", rng.choice(people))
        yield Fact(work, "material", rng.choice(MATERIALS))
