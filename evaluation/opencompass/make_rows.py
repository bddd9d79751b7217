"""Writes data/*.jsonl, the rows of tiny_datasets.py, from the held-out facts and the test rows of data/tiny_data.

python evaluation/opencompass/make_rows.py
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
FACTS = 40  # enough to tell base and adapter apart, few enough for seconds on a CPU
KINDS = ("plays the", "was born in", "works as a", "loves to eat")  # a sentence's words tell which endings it may have


def choices(facts: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """Makes questions of facts: four endings of one kind, the letter of the right one, and the right one in words."""
    draw = random.Random(0)
    for fact in facts:
        kind = next((words for words in KINDS if fact["prompt"].endswith(words)), None)
        if kind is None:
            continue
        wrong = sorted({other["answer"] for other in facts if other["prompt"].endswith(kind)} - {fact["answer"]})
        endings = [fact["answer"], *draw.sample(wrong, 3)]
        draw.shuffle(endings)
        letters = dict(zip("ABCD", endings, strict=True))
        answer = "ABCD"[endings.index(fact["answer"])]
        yield {"prompt": fact["prompt"], **letters, "answer": answer, "answers": [fact["answer"]]}


def tasks(rows: list[dict[str, Any]], word: str) -> Iterator[dict[str, Any]]:
    """Takes the rows whose instruction has a word; their text is what the model reads of them (see docs/data.md)."""
    for row in rows:
        if word in row["instruction"]:
            text = f"{row['instruction']}\n{row['input']}"
            yield {"text": text, "answer": row["output"], "answers": [row["output"]]}


def main(argv: list[str] | None = None) -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description="Writes the rows of tiny_datasets.py.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "data")
    folder = parser.parse_args(argv).folder
    facts = json.loads((ROOT / "data/tiny_data/recall.json").read_text(encoding="utf-8"))
    rows = json.loads((ROOT / "data/tiny_data/test.json").read_text(encoding="utf-8"))
    files = {
        "facts": list(choices(facts))[:FACTS],
        "sentiment": list(tasks(rows, "review")),
        "topic": list(tasks(rows, "topic")),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
