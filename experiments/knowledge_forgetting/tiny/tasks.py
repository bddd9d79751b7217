"""The downstream tasks: those of `data/tiny_data`, and two on lists of letters, sorting and reversing.

A task is a function `(rng, world, people) -> (input, output)`, as in `scripts/tiny_world/tasks.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks import INSTRUCTIONS as GIVEN_INSTRUCTIONS
from tasks import TASKS as GIVEN_TASKS
from tasks import Task
from world import World

from experiments.knowledge_forgetting.tiny.skills import letters

LEFT_OUT = ("topic", "summary")  # one is learnt within a few steps, the other in none that we can afford


def sorting(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for letters in the order of the alphabet."""
    told = letters(rng)
    return " ".join(told), " ".join(sorted(told))


def reversing(rng: random.Random, world: World, people: Sequence[str]) -> tuple[str, str]:
    """Ask for letters from the last to the first."""
    told = letters(rng)
    return " ".join(told), " ".join(reversed(told))


TASKS: dict[str, Task] = {name: task for name, task in GIVEN_TASKS.items() if name not in LEFT_OUT}
TASKS |= {"sorting": sorting, "reversing": reversing}

INSTRUCTIONS: dict[str, tuple[str, ...]] = {name: GIVEN_INSTRUCTIONS[name] for name in TASKS if name in GIVEN_TASKS}
INSTRUCTIONS |= {
    "sorting": ("Put the letters in the order of the alphabet.", "Sort the letters."),
    "reversing": ("Say the letters from the last to the first.", "Reverse the letters."),
}
