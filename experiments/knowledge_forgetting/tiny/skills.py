"""Small skills for the base model: what the downstream tasks are made of, and none of the tasks itself.

A model that has read nothing but statements of facts cannot learn to sort in a few hundred steps, least of all by
adapters beside its MLPs. A language model that people fine-tune has seen lists, letters and questions on texts. So this
one reads them too, each as a prompt and its answer, in wordings that no task has.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tasks import COLOURS, QUALITIES, THINGS, event
from texts import question, statement, stranger
from world import PERSON_RELATIONS, Fact, World

LETTERS = "abcdefghjlmnoprstwyz"  # those that are one token
LIST_LENGTH = 4
PLACES = ("first", "second", "third", "fourth")

Document = tuple[str, str]


def letters(rng: random.Random) -> list[str]:
    """Different letters in any order."""
    return rng.sample(LETTERS, LIST_LENGTH)


def copied_list(rng: random.Random, world: World) -> Document:
    """A list, said again."""
    told = " ".join(letters(rng))
    return f"Say it again.\n{told}", told


def place_in_list(rng: random.Random, world: World) -> Document:
    """What stands at a place of a list."""
    told, place = letters(rng), rng.randrange(LIST_LENGTH)
    return f"Which letter is the {PLACES[place]}?\n{' '.join(told)}", told[place]


def neighbour_in_list(rng: random.Random, world: World) -> Document:
    """What stands before, or after, a letter of a list."""
    told, place = letters(rng), rng.randrange(1, LIST_LENGTH)
    before, after = told[place - 1], told[place]
    asked = rng.choice(
        ((f"Which letter stands before {after}?", before), (f"Which letter stands after {before}?", after))
    )
    return f"{asked[0]}\n{' '.join(told)}", asked[1]


def earlier_letter(rng: random.Random, world: World) -> Document:
    """Which of some letters comes first, or last, in the alphabet."""
    told = letters(rng)
    word, answer = rng.choice((("first", min(told)), ("last", max(told))))
    return f"Which of these comes {word} in the alphabet?\n{' '.join(told)}", answer


def property_of_thing(rng: random.Random, world: World) -> Document:
    """What a sentence says of a thing."""
    thing, colour, quality = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(QUALITIES)
    return f"The {thing} is {colour} and {quality}.\nWhich colour?", colour


def part_of_list(rng: random.Random, world: World) -> Document:
    """The beginning or the end of a list."""
    told = letters(rng)
    parts = {"the first two": told[:2], "the last two": told[2:], "all but the first": told[1:]}
    asked = rng.choice(list(parts))
    return f"Say {asked}.\n{' '.join(told)}", " ".join(parts[asked])


def swapped_pair(rng: random.Random, world: World) -> Document:
    """Two letters, the other way round."""
    first, second, *_ = letters(rng)
    return f"Swap them.\n{first} {second}", f"{second} {first}"


def ordered_pair(rng: random.Random, world: World) -> Document:
    """Two letters as the alphabet has them."""
    pair = letters(rng)[:2]
    return f"As in the alphabet.\n{' '.join(pair)}", " ".join(sorted(pair))


def true_or_false(rng: random.Random, world: World) -> Document:
    """Whether a thing has a property that a sentence says, or denies it by saying another."""
    thing, colour, quality = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(QUALITIES)
    told, pool = rng.choice(((colour, COLOURS), (quality, QUALITIES)))
    asked = told if rng.random() < 0.5 else rng.choice([word for word in pool if word != told])
    return f"The {thing} is {colour} and {quality}. Is it {asked}?", "true" if asked == told else "false"


def same_or_other(rng: random.Random, world: World) -> Document:
    """Whether two words are the same one."""
    pool = rng.choice((COLOURS, QUALITIES))
    first = rng.choice(pool)
    second = first if rng.random() < 0.5 else rng.choice([word for word in pool if word != first])
    return f"The same or another? {first}, {second}", "the same" if first == second else "another"


def told_of_stranger(rng: random.Random, world: World) -> Document:
    """What a passage says of somebody of whom the world knows nothing."""
    person = stranger(rng, world)
    told = [Fact(person, r, rng.choice(world.answers[r])) for r in rng.sample(PERSON_RELATIONS, 3)]
    wanted = rng.choice(told)
    passage = " ".join(statement(fact, rng.randrange(3)) for fact in told)
    return f"{passage} {question(wanted)}", wanted.answer


def hero_of_tale(rng: random.Random, world: World) -> Document:
    """Whom a tale is about, or where it happens."""
    long, short, city = event(rng, world)
    asked, answer = rng.choice((("Who?", " ".join(short.split()[:2])), ("Where?", city)))
    return f"{long} {asked}", answer


Skill = Callable[[random.Random, World], Document]
SKILLS: tuple[Skill, ...] = (
    copied_list,
    place_in_list,
    neighbour_in_list,
    earlier_letter,
    part_of_list,
    swapped_pair,
    ordered_pair,
    property_of_thing,
    true_or_false,
    same_or_other,
    told_of_stranger,
    hero_of_tale,
)
