"""What a scale of the experiment is: a base model, rows to train on, and items to ask for before and after.

`tiny` is an invented world in which every fact can be counted; `real` is a language model and data sets that people
use. All else (arms, training, grid, analysis) is the same for both.
"""

from __future__ import annotations

import copy
import random
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

Split = Literal["validation", "test"]
"""Learning rates are chosen on `validation`; what is published is of `test`."""


class Row(TypedDict):
    """A row of training data, as `train.py` reads it."""

    instruction: str
    input: str
    output: str
    task_type: int


class Scale(Protocol):
    """What the rest of the experiment asks of a scale.

    Attributes:
        name: Its name, and that of its folder of results.
        sources: Files and folders, in the repository, of what makes its rows, items and base model.
        knowledge: Sets of items that tell what the base model knows.
        downstream: Sets of items that tell what it should learn.
        chance: By set, how many of its items are right by guessing, 0 to 1.
        rows: Rows of training data in the main grid.
        row_counts: Numbers of rows of the study of forgetting against data.
        batch_size: Rows a step.
        max_seq_length: Longest row in tokens.
        learning_rates: Those that are tried, by kind of arm (`full`, `lora`, `loramoe`).
        bf16: Whether to train under bfloat16 autocast.
        packing: Whether the rows of a step stand in one row, which saves padding and computes the same.
    """

    name: str
    sources: tuple[str, ...]
    knowledge: tuple[str, ...]
    downstream: tuple[str, ...]
    chance: dict[str, float]
    rows: int
    row_counts: tuple[int, ...]
    batch_size: int
    max_seq_length: int
    learning_rates: dict[str, tuple[float, ...]]
    bf16: bool
    packing: bool

    def asked(self) -> str:
        """All that is asked, as one text, by which results on other items are told from these."""

    def base(self) -> tuple[Any, Any]:
        """The base model, in float32 and evaluation mode, and its tokenizer."""

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Row]:
        """`count` rows of all tasks and of questions, shuffled; the same ones for the same seed.

        Args:
            count: How many.
            seed: Of the draw.
            replay: Share of the rows of type 1 that tell facts as the base model has read them, in place of questions;
                facts about subjects that no item asks for.
        """

    def score(self, model: Any, tokenizer: Any, split: Split) -> dict[str, NDArray[np.bool_]]:
        """Which items of each set the model answers rightly, always in the same order."""


def gone_through(scale: Scale, epochs: int) -> Scale:
    """A scale whose rows are gone through several times.

    Args:
        scale: The scale.
        epochs: How often. Of one epoch the rows are as they were; of each further one in another order.

    Returns:
        A copy of the scale that gives `epochs` times as many rows as are asked for.
    """

    def train_rows(count: int, seed: int, replay: float = 0.0) -> list[Row]:
        rows = scale.train_rows(count, seed, replay)
        rng = random.Random(f"epochs {seed}")
        return [*rows, *(row for _ in range(epochs - 1) for row in rng.sample(rows, len(rows)))]

    repeated = copy.copy(scale)
    repeated.train_rows = train_rows  # type: ignore[method-assign]
    return repeated
