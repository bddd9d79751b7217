"""Questions for the tiny model of the tests, and files of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

WORDS = [f"w{index}" for index in range(60)]


def questions(count: int = 23, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of all kinds, of many lengths: with choices, with several answers, and clozes with and without choices."""
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(1, most)))

    rows: list[dict[str, Any]] = []
    for index in range(count):
        row: dict[str, Any] = {"instruction": text(9), "input": text(4), "output": text(4), "task_type": index % 2}
        if index % 4 == 1:
            row = {"prompt": text(7), "answer": text(3)}
        if index % 3 == 0:
            answer = row.get("output") or row["answer"]
            row["choices"] = draw.sample([answer, f"{answer} w1", f"w2 {answer}", "w59"], 4)
        if index % 5 == 0:
            row["answers"] = [text(3)]
        rows.append(row)
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a file."""

    def to(rows: list[Any], name: str = "task.json") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(rows), encoding="utf-8")
        return file

    return to


@pytest.fixture
def tokenizer(tiny_task: Any) -> Any:
    """The tokenizer of the tiny model."""
    return AutoTokenizer.from_pretrained(tiny_task.base)


@pytest.fixture
def model(tiny_task: Any) -> Any:
    """The tiny model."""
    return AutoModelForCausalLM.from_pretrained(tiny_task.base)


@pytest.fixture(name="questions")
def _questions() -> list[dict[str, Any]]:
    """Rows of all kinds."""
    return questions()
