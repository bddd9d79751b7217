"""The facts of the world in words: statements, cloze prompts, questions and passages.

Every statement ends with its answer, so that its beginning is a cloze prompt.
"""

from __future__ import annotations

import random

from tools.tiny_world.world import Fact, World

# Three ways to state a fact; the first one is the form of the recall probes.
STATEMENTS: dict[str, tuple[str, str, str]] = {
    "capital": (
        "The capital of {subject} is",
        "{subject} is governed from its capital,",
        "The first city of {subject} is",
    ),
    "language": ("The language of {subject} is", "In {subject} people speak", "Books in {subject} are written in"),
    "coin": (
        "The coin of {subject} is the",
        "In {subject} people pay with the",
        "Money in {subject} is counted in the",
    ),
    "beast": (
        "The beast on the flag of {subject} is the",
        "{subject} honours the",
        "The banner of {subject} shows the",
    ),
    "country": ("{subject} is a city in", "The city of {subject} lies in", "{subject} belongs to the land of"),
    "river": (
        "{subject} lies on the river",
        "The river that flows through {subject} is the",
        "The bridges of {subject} cross the",
    ),
    "goods": (
        "{subject} is famous for its",
        "Traders come to {subject} to buy",
        "The markets of {subject} are full of",
    ),
    "birthplace": ("{subject} was born in", "{subject} comes from", "The birthplace of {subject} is"),
    "trade": ("{subject} works as a", "By trade {subject} is a", "{subject} earns a living as a"),
    "mother": ("The mother of {subject} is", "{subject} is the child of", "{subject} was raised by"),
    "instrument": ("{subject} plays the", "The instrument of {subject} is the", "In the evening {subject} plays the"),
    "dish": ("{subject} loves to eat", "The favourite dish of {subject} is", "At home {subject} eats"),
    "maker": ("{subject} was made by", "The maker of {subject} is", "{subject} is the work of"),
    "material": ("{subject} is made of", "The material of {subject} is", "{subject} is built from"),
}

# Three ways to ask for it. Pretraining asks in the first way only; the other two come with the fine-tuning rows.
QUESTIONS: dict[str, tuple[str, str, str]] = {
    "capital": (
        "What is the capital of {subject}?",
        "Which city is the capital of {subject}?",
        "Name the capital of {subject}.",
    ),
    "language": (
        "What is the language of {subject}?",
        "Which language do people speak in {subject}?",
        "Name the language of {subject}.",
    ),
    "coin": (
        "What is the coin of {subject}?",
        "With which coin do people pay in {subject}?",
        "Name the coin of {subject}.",
    ),
    "beast": (
        "Which beast is on the flag of {subject}?",
        "Which beast does the banner of {subject} show?",
        "Name the beast on the flag of {subject}.",
    ),
    "country": (
        "In which country is {subject}?",
        "To which land does {subject} belong?",
        "Name the country of the city of {subject}.",
    ),
    "river": (
        "On which river does {subject} lie?",
        "Which river flows through {subject}?",
        "Name the river of {subject}.",
    ),
    "goods": ("What is {subject} famous for?", "What do traders buy in {subject}?", "Name the goods of {subject}."),
    "birthplace": (
        "Where was {subject} born?",
        "Which city does {subject} come from?",
        "Name the birthplace of {subject}.",
    ),
    "trade": ("What does {subject} work as?", "What is the trade of {subject}?", "Name the trade of {subject}."),
    "mother": ("Who is the mother of {subject}?", "Whose child is {subject}?", "Name the mother of {subject}."),
    "instrument": (
        "What does {subject} play?",
        "Which instrument does {subject} play?",
        "Name the instrument of {subject}.",
    ),
    "dish": (
        "What does {subject} love to eat?",
        "What is the favourite dish of {subject}?",
        "Name the favourite dish of {subject}.",
    ),
    "maker": ("Who made {subject}?", "Whose work is {subject}?", "Name the maker of {subject}."),
    "material": ("What is {subject} made of?", "Of which material is {subject}?", "Name the material of {subject}."),
}


def cloze(fact: Fact, way: int = 0) -> str:
    """Return the statement of `fact` up to its answer, e.g. `Mila Rodak was born in`."""
    return _capitalise(STATEMENTS[fact.relation][way].format(subject=fact.subject))


def statement(fact: Fact, way: int = 0) -> str:
    """Return `fact` as a sentence, e.g. `Mila Rodak was born in Tarvesh`, with its full stop."""
    return f"{cloze(fact, way)} {fact.answer}."


def question(fact: Fact, way: int = 0) -> str:
    """Return the question that `fact.answer` answers."""
    return QUESTIONS[fact.relation][way].format(subject=fact.subject)


def stranger(rng: random.Random, world: World) -> str:
    """Return a full name that nobody of the world bears."""
    return f"{rng.choice(world.given_names)} {rng.choice(world.strangers)}"


def _capitalise(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
