"""Rows and items of the tiny scale, and the base model that knows the world.

The facts are cut by subject, as they were for pretraining. Training asks about the 30 % called *asked*; knowledge is
tested on the other 70 %, of which a part of the subjects is kept for validation, as a statement to finish (`cloze`) and
as a question in the wording of pretraining (`question`). Left out are the facts that the training tells from the other
side: a city lies in the country whose capital it is. No text of a downstream item is trained on.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from texts import cloze, question
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import Fact, World, make_world, split_world

from experiments.knowledge_forgetting.exact import Item, exact
from experiments.knowledge_forgetting.scale import Row, Split
from experiments.knowledge_forgetting.tiny.base import FOLDER, WORLD_SEED, make_base
from experiments.knowledge_forgetting.tiny.tasks import INSTRUCTIONS, TASKS
from loramoe.data import ReleaseTemplate, conversation

ITEMS_SEED = 1_000  # far from the seeds of training rows
QUESTION_SHARE = 0.25  # of the training rows are questions, type 1
VALIDATION_SUBJECTS = 0.15  # of those that knowledge is tested on
ITEMS_PER_TASK = {"validation": 300, "test": 1_000}
KNOWLEDGE, DOWNSTREAM = 1, 0  # task types


class TinyScale:
    """The tiny scale; see `experiments.knowledge_forgetting.scale.Scale`."""

    name = "tiny"
    sources = ("scripts/tiny_world", "experiments/knowledge_forgetting/tiny", "data/tiny_llama/tokenizer.json")
    knowledge = ("cloze", "question")
    downstream = tuple(TASKS)
    chance: ClassVar[dict[str, float]] = {"cloze": 0.0, "question": 0.0, **dict.fromkeys(TASKS, 0.0)}
    chance |= {"inference": 0.5, "sentiment": 0.5}
    rows = 6_400
    row_counts = (640, 2_000, 6_400, 20_000)
    batch_size = 16
    max_seq_length = 256
    # A factor of two apart, so that the highest is beyond the best. In trials, full fine-tuning at 3e-3 and adapters at
    # 1e-2 forgot everything.
    learning_rates: ClassVar[dict[str, tuple[float, ...]]] = {
        "full": (3e-4, 6e-4, 1.2e-3, 2.4e-3),
        "lora": (1e-3, 2e-3, 4e-3, 8e-3),
        "loramoe": (1e-3, 2e-3, 4e-3, 8e-3),
    }
    bf16 = False
    packing = False

    def __init__(self) -> None:
        self.world: World = make_world(WORLD_SEED)
        self.split = split_world(self.world, WORLD_SEED)
        told = {(fact.answer, fact.subject) for fact in self.split.asked}
        known = (*self.split.taught, *self.split.held_out)
        self.tested = _by_subject([fact for fact in known if (fact.subject, fact.answer) not in told])
        self.people = {
            "train": sorted({fact.subject for fact in self.split.asked} & set(self.world.people)),
            "test": sorted({fact.subject for fact in self.split.held_out} & set(self.world.people)),
        }
        self.items = _task_items(self.world, self.people["test"])

    def base(self) -> tuple[Any, Any]:
        """The model that `tiny/base.py` makes."""
        make_base()
        return AutoModelForCausalLM.from_pretrained(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)

    def asked(self) -> str:
        """All facts and items that are asked for."""
        return repr((self.tested, self.items))

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Row]:
        """Questions about the asked facts, each fact as often as the next, and equally many rows of each task."""
        rng = random.Random(f"rows {seed}")
        questions = round(count * QUESTION_SHARE)
        asked = self.split.asked
        facts = [fact for _ in range(questions // len(asked) + 1) for fact in rng.sample(asked, len(asked))]
        replayed = round(questions * replay)
        rows = [_replayed(fact, rng) for fact in facts[:replayed]]
        rows += [
            _row(question(fact, rng.choice((1, 2))), "", fact.answer, KNOWLEDGE) for fact in facts[replayed:questions]
        ]
        taken = {text for split in self.items.values() for items in split.values() for text, _, _ in items}
        names = [name for _ in range(count) for name in TASKS]
        for name in names[: count - questions]:
            text, answer = _new(rng, name, self.world, self.people["train"], taken)
            rows.append(_row(rng.choice(INSTRUCTIONS[name]), text, answer, DOWNSTREAM))
        rng.shuffle(rows)
        return rows

    def score(self, model: Any, tokenizer: Any, split: Split) -> dict[str, NDArray[np.bool_]]:
        """Which items the model would say word for word by greedy decoding."""
        template = ReleaseTemplate(tokenizer)
        sets = {
            "cloze": [_statement(tokenizer, fact) for fact in self.tested[split]],
            "question": [_asked(template, question(fact), "", fact.answer) for fact in self.tested[split]],
        }
        for name, items in self.items[split].items():
            sets[name] = [_asked(template, instruction, text, answer) for text, instruction, answer in items]
        return {name: exact(model, items) for name, items in sets.items()}


def _by_subject(facts: list[Fact]) -> dict[str, list[Fact]]:
    subjects = sorted({fact.subject for fact in facts})
    random.Random(ITEMS_SEED).shuffle(subjects)
    first = set(subjects[: round(VALIDATION_SUBJECTS * len(subjects))])
    return {
        "validation": [fact for fact in facts if fact.subject in first],
        "test": [fact for fact in facts if fact.subject not in first],
    }


def _task_items(world: World, people: list[str]) -> dict[str, dict[str, list[tuple[str, str, str]]]]:
    """Text, instruction and answer of the items of each split and task, none of which is there twice."""
    rng, taken = random.Random(ITEMS_SEED), set[str]()
    items: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for split, count in ITEMS_PER_TASK.items():
        items[split] = {}
        for name in TASKS:
            items[split][name] = []
            for _ in range(count):
                text, answer = _new(rng, name, world, people, taken)
                taken.add(text)
                items[split][name].append((text, rng.choice(INSTRUCTIONS[name]), answer))
    return items


def _new(rng: random.Random, name: str, world: World, people: list[str], taken: set[str]) -> tuple[str, str]:
    """An example of a task whose text is not taken."""
    while True:
        text, answer = TASKS[name](rng, world, people)
        if text not in taken:
            return text, answer


def _row(instruction: str, text: str, output: str, task_type: int) -> Row:
    return {"instruction": instruction, "input": text, "output": output, "task_type": task_type}


def _replayed(fact: Fact, rng: random.Random) -> Row:
    """A fact as pretraining told it: as a statement to finish, or as a question in its wording."""
    return _row(cloze(fact) if rng.random() < 0.5 else question(fact), "", fact.answer, KNOWLEDGE)


def _statement(tokenizer: Any, fact: Fact) -> Item:
    """The beginning of a statement, and its answer: no answer starts another one, so that its end need not be asked."""
    prompt = tokenizer(cloze(fact))["input_ids"]
    return Item(prompt, tokenizer(fact.answer, add_special_tokens=False)["input_ids"])


def _asked(template: ReleaseTemplate, instruction: str, text: str, output: str) -> Item:
    (encoded,) = template.encode([conversation(instruction, text, output)])
    return Item(encoded.prompt, encoded.target)
