"""Write the tiny data set: `train/train.json`, `test.json` and `recall.json`.

python -m tools.tiny_world.make_data [--out data/tiny_data] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.tiny_world.tasks import INSTRUCTIONS, TASKS
from tools.tiny_world.texts import cloze, question
from tools.tiny_world.world import Fact, World, make_world, split_world

REPO = Path(__file__).resolve().parents[2]
KNOWLEDGE, DOWNSTREAM = 1, 0  # task types: closed-book questions, and everything answered from the text at hand

TRAIN_QUESTIONS, TRAIN_ROWS_PER_TASK = 320, 80  # 800 rows, 40 % of them closed-book questions
TEST_QUESTIONS, TEST_ROWS_PER_TASK = 80, 20  # 200 rows, the same share
RECALL_PROBES = 400

Row = dict[str, Any]


def make_rows(seed: int = 0) -> tuple[list[Row], list[Row], list[Row]]:
    """Make the training rows, the test rows and the recall probes that belong to `seed`."""
    world = make_world(seed)
    split = split_world(world, seed)
    rng = random.Random(seed)
    asked, held_out = (
        rng.sample(split.asked, TRAIN_QUESTIONS),
        rng.sample(split.held_out, TEST_QUESTIONS + RECALL_PROBES),
    )
    seen: set[tuple[str, str]] = set()  # one set for both files: no row of one is in the other
    train = [_question_row(rng, fact, ways=(1, 2)) for fact in asked]
    train += _task_rows(rng, world, split.asked, TRAIN_ROWS_PER_TASK, seen)
    test = [_question_row(rng, fact, ways=(0, 1, 2)) for fact in held_out[:TEST_QUESTIONS]]
    test += _task_rows(rng, world, split.held_out, TEST_ROWS_PER_TASK, seen)
    rng.shuffle(train)
    rng.shuffle(test)
    probes = [{"prompt": cloze(fact), "answer": fact.answer} for fact in held_out[TEST_QUESTIONS:]]
    return train, test, probes


def _question_row(rng: random.Random, fact: Fact, ways: Sequence[int]) -> Row:
    asked = question(fact, rng.choice(ways))
    return {"instruction": asked, "input": "", "output": fact.answer, "task_type": KNOWLEDGE}


def _task_rows(
    rng: random.Random, world: World, facts: Iterable[Fact], count: int, seen: set[tuple[str, str]]
) -> list[Row]:
    """Make `count` rows of every task, none of which is in `seen`, about people that `facts` are about."""
    people = sorted({fact.subject for fact in facts} & set(world.people))
    rows: list[Row] = []
    for name, task in TASKS.items():
        wanted = len(rows) + count
        while len(rows) < wanted:
            instruction = rng.choice(INSTRUCTIONS[name])
            text, answer = task(rng, world, people)
            if (name, text) not in seen:
                seen.add((name, text))
                rows.append({"instruction": instruction, "input": text, "output": answer, "task_type": DOWNSTREAM})
    return rows


def write_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list with one row a line, so that a change of one row is a change of one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "data" / "tiny_data", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="which world; the base model knows that of seed 0")
    options = parser.parse_args(arguments)
    train, test, probes = make_rows(options.seed)
    for name, rows in (("train/train.json", train), ("test.json", test), ("recall.json", probes)):
        write_json(options.out / name, rows)
        print(f"{options.out / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
