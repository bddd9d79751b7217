"""Plain texts for pretraining: they hold the words and the sentence forms of the downstream tasks, solved nowhere.

Adapters on the MLP can hardly make a frozen model say a word it never said. So it reads reviews, tales and the
teacher's instructions here; which label belongs to which text is left for fine-tuning to learn.
"""

from __future__ import annotations

import random

from tools.tiny_world.tasks import COLOURS, INSTRUCTIONS, QUALITIES, TASKS, THINGS, TOPICS, event
from tools.tiny_world.texts import STATEMENTS, stranger
from tools.tiny_world.world import PERSON_RELATIONS, World

LABELS = ("yes", "no", "positive", "negative", *TOPICS)


def prose(rng: random.Random, world: World) -> str:
    """Return one plain text."""
    return rng.choice((_raw_text, _tale, _tale, _passage, _passage, _passage, _contrast, _school))(rng, world)


def _raw_text(rng: random.Random, world: World) -> str:
    """A review or a few sentences on one topic, without its label."""
    return TASKS[rng.choice(("sentiment", "topic"))](rng, world, ())[0]


def _tale(rng: random.Random, world: World) -> str:
    """What happened to a stranger, told twice: a later mention repeats the names of an earlier one."""
    long, short, city = event(rng, world)
    ending = rng.choice((short, f"That happened in {city}.", f"The city was {city}.", f"In {city} they still tell it."))
    return f"{long} {ending}"


def _passage(rng: random.Random, world: World) -> str:
    """Three things about a stranger, one of them said again in other words."""
    person = stranger(rng, world)
    told = {relation: rng.choice(world.answers[relation]) for relation in rng.sample(PERSON_RELATIONS, 3)}
    again = rng.choice(list(told))
    first, second = rng.sample(range(3), 2)
    ways = [(relation, first if relation == again else rng.randrange(3)) for relation in told]
    sentences = [f"{STATEMENTS[r][way]} {told[r]}." for r, way in [*ways, (again, second)]]
    return " ".join(sentences).format(subject=person)


def _contrast(rng: random.Random, world: World) -> str:
    """Two sentences on a thing, as the inference task pairs them, without a verdict."""
    thing, colour, quality = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(QUALITIES)
    other = f"The {thing} of the neighbour is {rng.choice(COLOURS)}."
    second = rng.choice((f"The {thing} is {rng.choice((colour, quality))}.", other))
    return f"First: The {thing} is {colour} and {quality}.\nSecond: {second}"


def _school(rng: random.Random, world: World) -> str:
    """An instruction or a label as a word among words."""
    told = rng.choice(INSTRUCTIONS[rng.choice(list(INSTRUCTIONS))])
    label = rng.choice(LABELS)
    written = f"On the blackboard was the word {label}."
    return rng.choice((f"The teacher said: {told}", f"The child said {label} and the teacher wrote it down.", written))
