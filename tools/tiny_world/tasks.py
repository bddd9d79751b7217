"""Six downstream tasks, whose answers come from the text at hand and not from knowledge of the world.

Each task is a function `(rng, world, people) -> (input, output)`; `people` are those it may speak of. A reading
passage contradicts what the world holds, so that only the passage can give the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.tiny_world.texts import question, statement, stranger
from tools.tiny_world.world import PERSON_RELATIONS, Fact, World, words

# What the tasks tell the model to do: two wordings each. They are also what tells the tasks apart in the data files.
INSTRUCTIONS: dict[str, tuple[str, str]] = {
    "reading": ("Read the passage and answer the question.", "Answer the question from the passage."),
    "inference": (
        "Does the second sentence follow from the first? Answer yes or no.",
        "Is the second sentence true if the first one is? Answer yes or no.",
    ),
    "sentiment": ("Is this review positive or negative?", "Tell if the review is positive or negative."),
    "topic": (
        "What is the topic of this text: weather, music, food, travel or sport?",
        "Choose the topic of the text: weather, music, food, travel or sport.",
    ),
    "extraction": ("Which city does the text name?", "Find the city in the text."),
    "summary": ("Summarise the text in one short sentence.", "Say in one short sentence what the text tells."),
}

THINGS = words("door cart roof coat boat table wall basket gate chair")
COLOURS = words("red blue green white black yellow grey brown")
QUALITIES = words("heavy light wide narrow clean dusty new old cheap costly")
MATTERS = words("soup room play journey song market garden meal bath concert")
HOSTS = words("host cook driver guide singer owner waiter crew")
GOOD_WORDS = words("""
    wonderful lovely excellent delightful splendid charming brilliant superb perfect pleasant friendly cheerful warm
    helpful
""")
BAD_WORDS = words("""
    terrible awful dreadful horrible dull boring nasty rude filthy disappointing poor unpleasant cold careless
""")
PRAISE = ("I will come again soon.", "Everybody should try it.", "We enjoyed every minute.", "It made us happy.")
BLAME = ("I will never come again.", "Nobody should try it.", "We regretted every minute.", "It made us angry.")

TOPICS: dict[str, tuple[str, ...]] = {
    "weather": (
        "Rain fell all night.",
        "The fog was thick at dawn.",
        "A storm came from the sea.",
        "Snow covered the hills.",
        "The wind turned to the north.",
        "The sun shone until evening.",
        "Clouds hung over the valley.",
        "Frost lay on the fields.",
    ),
    "music": (
        "The choir sang two old songs.",
        "A drummer kept the beat.",
        "The melody was slow and sad.",
        "The fiddles were out of tune.",
        "The singer held the last note.",
        "They danced to a merry tune.",
        "The band played until midnight.",
        "She wrote a song for the harp.",
    ),
    "food": (
        "The bread was fresh from the oven.",
        "He stirred the soup with a spoon.",
        "The cake needed more sugar.",
        "They fried fish in butter.",
        "The stew boiled for an hour.",
        "She cut the pie into slices.",
        "Dinner was roast meat and beans.",
        "The pancakes were sweet.",
    ),
    "travel": (
        "The coach left the station early.",
        "They packed their bags for the trip.",
        "The road led over the pass.",
        "The ferry was late.",
        "He lost his ticket at the harbour.",
        "The guide showed them the way.",
        "They slept at an inn by the road.",
        "The map was wrong.",
    ),
    "sport": (
        "The runner won the race.",
        "Their team lost the match.",
        "She threw the ball to the keeper.",
        "The wrestlers trained hard.",
        "He scored in the last minute.",
        "The jumper broke the record.",
        "The rowers crossed the finish line.",
        "The referee stopped the game.",
    ),
}

# What happened, as a long tale and in short.
EVENTS: tuple[tuple[str, str], ...] = (
    ("{when} {person} packed a bag and walked along the river to {city}.", "{person} went to {city}."),
    (
        "{when} {person} found an empty house near the market of {city} and paid for it.",
        "{person} bought a house in {city}.",
    ),
    ("{when} {person} opened a small shop in {city}, with bread in the window.", "{person} opened a shop in {city}."),
    ("{when} {person} lost a purse in {city} and never saw it again.", "{person} lost a purse in {city}."),
    (
        "{when} {person} ran in the great race of {city} and came in before all the others.",
        "{person} won the race in {city}.",
    ),
    (
        "{when} {person} fell from a horse outside {city} and had to stay in bed for a month.",
        "{person} fell from a horse near {city}.",
    ),
)
TIMES = (
    "Last spring",
    "One morning",
    "In the autumn",
    "A year ago",
    "After the feast",
    "On a cold day",
    "Before the harvest",
)


def reading(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for one of three things that a passage tells, each other than in the world."""
    person = rng.choice(people)
    known = {fact.relation: fact.answer for fact in world.facts if fact.subject == person}
    told = []
    for relation in rng.sample(PERSON_RELATIONS, 3):
        others = [answer for answer in world.answers[relation] if answer != known[relation]]
        told.append(Fact(person, relation, rng.choice(others)))
    passage = " ".join(statement(fact, rng.randrange(3)) for fact in told)
    wanted = rng.choice(told)
    return f"{passage}\n{question(wanted, rng.randrange(3))}", wanted.answer


def inference(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask whether a sentence about one property of a thing follows from a sentence about two of them."""
    thing, colour, quality = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(QUALITIES)
    told, pool = rng.choice(((colour, COLOURS), (quality, QUALITIES)))
    follows = rng.random() < 0.5
    claimed = told if follows else rng.choice([word for word in pool if word != told])
    first = f"The {thing} is {colour} and {quality}."
    return f"First: {first}\nSecond: The {thing} is {claimed}.", "yes" if follows else "no"


def sentiment(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for the mood of a review."""
    positive = rng.random() < 0.5
    words, closing = (GOOD_WORDS, PRAISE) if positive else (BAD_WORDS, BLAME)
    first, second = rng.sample(words, 2)
    review = f"The {rng.choice(MATTERS)} was {first} and the {rng.choice(HOSTS)} was {second}. {rng.choice(closing)}"
    return review, "positive" if positive else "negative"


def topic(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask what three sentences are about."""
    name = rng.choice(list(TOPICS))
    return " ".join(rng.sample(TOPICS[name], 3)), name


def extraction(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for the city in a tale."""
    long, _, city = event(rng, world)
    return long, city


def summary(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for the short form of a tale."""
    long, short, _ = event(rng, world)
    return long, short


def event(rng: random.Random, world: World) -> tuple[str, str, str]:
    """Return a tale about a stranger, its short form and the city in it."""
    long, short = rng.choice(EVENTS)
    names = {"person": stranger(rng, world), "city": rng.choice(world.cities), "when": rng.choice(TIMES)}
    return long.format(**names), short.format(**names), names["city"]


Task = Callable[[random.Random, World, Sequence[str]], tuple[str, str]]
TASKS: dict[str, Task] = {
    "reading": reading,
    "inference": inference,
    "sentiment": sentiment,
    "topic": topic,
    "extraction": extraction,
    "summary": summary,
}
