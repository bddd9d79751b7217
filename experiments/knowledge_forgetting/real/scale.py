"""The scale `real`: SmolLM2-135M-Instruct and public data; see README.md for both.

Two sizes of the item sets: `cpu` for scoring in minutes on one core, `gpu` with all there is, within reason. A smaller
set is the beginning of the larger one. What is read from the data is kept by the process, for all of its runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.knowledge_forgetting.real import downstream as tasks
from experiments.knowledge_forgetting.real.cloze import chosen_relations, clozes, statement_rows, subjects
from experiments.knowledge_forgetting.real.files import shuffled
from experiments.knowledge_forgetting.real.items import Item, Measure
from experiments.knowledge_forgetting.real.mixture import QUESTION_SHARE, mixture
from experiments.knowledge_forgetting.real.questions import (
    Question,
    natural_questions,
    question_items,
    question_rows,
    web_questions,
    without_overlap,
)
from experiments.knowledge_forgetting.real.score import score
from experiments.knowledge_forgetting.scale import Row, Split

MODEL: Final = Path(__file__).parents[3] / "models" / "smollm2-135m"
Size = Literal["cpu", "gpu"]
Items = dict[Split, list[Item]]

MEASURES: Final[dict[str, Measure]] = {
    "trex": "total",
    "webquestions": "gain",
    "natural_questions": "gain",
    "openbookqa": "gain",
    "arc": "total",
    "boolq": "total",
    "gsm8k": "begins",
    "reading": "exact",
}
"""How each set is judged. Where there was a choice, it was made on validation data and on rows kept from training."""
MOST_ITEMS: Final[dict[Size, dict[Split, dict[str, int]]]] = {
    "cpu": {
        "validation": {"trex": 200, "webquestions": 100, "natural_questions": 100},
        "test": {"trex": 640, "webquestions": 200, "natural_questions": 200},
    },
    "gpu": {"validation": {"trex": 1_000}, "test": {"trex": 3_200, "webquestions": 2_000, "natural_questions": 3_000}},
}
MOST_OTHERS: Final[dict[Size, dict[Split, int]]] = {
    "cpu": {"validation": 80, "test": 120},
    "gpu": {"validation": 300, "test": 1_000},
}
"""Most items of each set that `MOST_ITEMS` does not name."""
ROW_COUNTS: Final[dict[Size, tuple[int, ...]]] = {"cpu": (100, 200, 400, 1_000), "gpu": (800, 2_400, 8_000, 24_000)}
"""The last but one is the main grid's. One core trains on two to three rows a second."""
HELD_OUT: Final = 300  # rows of a task that are kept from training for its validation items
READING_SHARES: Final = (27, 8)  # articles of XQuAD's 48 for training and validation


class RealScale:
    """What the experiment asks of a scale; see `experiments.knowledge_forgetting.scale.Scale`.

    Args:
        data: The folder of public data.
        model: The base model's folder.
        size: How many items are scored, and how many rows trained on. Results of `gpu` are another scale's, `real_gpu`.
        progress: Show progress bars of scoring.
    """

    sources = ("experiments/knowledge_forgetting/real",)
    knowledge = ("trex", "webquestions", "natural_questions")
    downstream = ("openbookqa", "arc", "boolq", "gsm8k", "reading")
    batch_size = 8
    max_seq_length = 160
    learning_rates: ClassVar[dict[str, tuple[float, ...]]] = {
        "full": (1e-5, 3e-5, 1e-4, 3e-4),
        "lora": (1e-4, 3e-4, 1e-3, 3e-3),
        "loramoe": (1e-4, 3e-4, 1e-3, 3e-3),
    }
    bf16 = True  # 2.5 times the speed of float32 on a core with AVX-512 BF16
    packing = True  # padding would be more than half of all tokens

    def __init__(self, data: Path, model: str | Path = MODEL, size: Size = "cpu", progress: bool = False) -> None:
        self.name = "real" if size == "cpu" else f"real_{size}"
        self.data = data
        self.model = model
        self.size = size
        self.row_counts = ROW_COUNTS[size]
        self.rows = self.row_counts[-2]
        self.progress = progress

    def base(self) -> tuple[Any, Any]:
        """The base model, in float32 and evaluation mode, and its tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(self.model)

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Row]:
        """`count` rows of all tasks and of questions, shuffled; the same ones for the same seed."""
        rows = {name: [row for row, _ in train] for name, (train, _) in _tasks(self.data).items()}
        replayed = shuffled(_statements(self.data), seed, "replay")[: round(count * QUESTION_SHARE * replay)]
        return mixture(question_rows(train_questions(self.data)[0]), rows, count, seed, replayed=replayed)

    def score(self, model: Any, tokenizer: Any, split: Split) -> dict[str, NDArray[np.bool_]]:
        """Which items of each set the model answers rightly, always in the same order."""
        device = model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            return {
                name: score(model, tokenizer, self.items[name][split], MEASURES[name], progress=self.progress)
                for name in (*self.knowledge, *self.downstream)
            }

    @property
    def items(self) -> dict[str, Items]:
        """All sets of items in this size, by name and split."""
        sets = {**_knowledge(self.data), **{name: items for name, (_, items) in _tasks(self.data).items()}}
        return {name: {split: its[: self._most(name, split)] for split, its in of.items()} for name, of in sets.items()}

    @cached_property
    def chance(self) -> dict[str, float]:
        """By set, how many of its test items are right by guessing; where all answers are the same, the commonest."""
        return {name: _chance(of["test"], MEASURES[name]) for name, of in self.items.items()}

    def asked(self) -> str:
        """All items, as one text."""
        return repr(self.items)

    def _most(self, name: str, split: Split) -> int:
        return MOST_ITEMS[self.size][split].get(name, MOST_OTHERS[self.size][split])


@cache
def train_questions(data: Path) -> tuple[list[Question], dict[str, int]]:
    """WebQuestions to train on, without those that overlap with knowledge items, and how many those were."""
    asked = [*web_questions(data, "val"), *web_questions(data, "test"), *natural_questions(data)]
    named = subjects(data, chosen_relations())
    return without_overlap(web_questions(data, "trainmodel"), asked, named)


@cache
def _statements(data: Path) -> list[Row]:
    return statement_rows(data, chosen_relations())


@cache
def _knowledge(data: Path) -> dict[str, Items]:
    relations = chosen_relations()
    natural = question_items(natural_questions(data))
    web: dict[Split, list[Question]] = {"validation": web_questions(data, "val"), "test": web_questions(data, "test")}
    return {
        "trex": {"validation": clozes(data, relations, "validation"), "test": clozes(data, relations, "test")},
        "webquestions": {split: shuffled(question_items(its), "webquestions", split) for split, its in web.items()},
        "natural_questions": {"validation": natural[:500], "test": natural[500:]},
    }


@cache
def _tasks(data: Path) -> dict[str, tuple[list[tasks.Task], Items]]:
    """Of each downstream task what to train on, and items."""
    readers: dict[str, Callable[[tasks.File], list[tasks.Task]]] = {
        **{name: partial(tasks.choices, data, name) for name in tasks.CHOICE_FOLDERS},
        "boolq": partial(tasks.boolq, data),
        "gsm8k": partial(tasks.gsm8k, data),
    }
    of_files = {
        name: _divided(shuffled(read("train"), name), shuffled(read("test"), name)) for name, read in readers.items()
    }
    articles = shuffled(tasks.reading(data), "reading")
    first, second = READING_SHARES[0], sum(READING_SHARES)
    train, validation, test = (
        shuffled([task for article in part for task in article], "reading")
        for part in (articles[:first], articles[first:second], articles[second:])
    )
    return {**of_files, "reading": (train, _items(validation, test))}


def _chance(items: Sequence[Item], measure: Measure) -> float:
    """The share of items that a guess has right; or, where all have the same candidates, the commonest right one."""
    if measure in ("begins", "exact"):
        return 0.0
    if len({item.candidates for item in items}) == 1:
        return max(Counter(item.right for item in items).values()) / len(items)
    return sum(1 / len(item.candidates) for item in items) / len(items)


def _divided(train: list[tasks.Task], test: list[tasks.Task]) -> tuple[list[tasks.Task], Items]:
    """Keeps the first rows from training, for validation, and those that are asked somewhere else too."""
    items = _items(train[:HELD_OUT], test)
    asked = {item.prompt for its in items.values() for item in its}
    return [task for task in train[HELD_OUT:] if task[1].prompt not in asked], items


def _items(validation: list[tasks.Task], test: list[tasks.Task]) -> Items:
    return {"validation": [item for _, item in validation], "test": [item for _, item in test]}
