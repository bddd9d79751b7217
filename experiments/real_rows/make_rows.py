"""Makes training rows of public data sets: WebQuestions as task type 1, OpenBookQA and ARC as task type 0.

    python experiments/real_rows/make_rows.py DATA models/real_rows

DATA is a folder with `webquestions/{trainmodel,val}.json` (brmson/dataset-factoid-webquestions, CC-BY 4.0) and
`llm_adapters/{openbookqa,ARC-Easy,ARC-Challenge}/{train,test}.json` (AGI-Edgerunners/LLM-Adapters). It writes
`train/train.json` and `validation.json` in the project's own format. The task type is that of the paper: 1 where the
answer must be known, 0 where it is chosen from what the question offers.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from tqdm import tqdm

CHOICE_SETS = ("openbookqa", "ARC-Easy", "ARC-Challenge")
Row = dict[str, Any]


def question_rows(file: Path) -> list[Row]:
    """WebQuestions: the first of the accepted answers is the one to learn."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    return [row(f"Answer the question: {e['qText']}", e["answers"][0], task_type=1) for e in entries if e["answers"]]


def choice_rows(file: Path) -> list[Row]:
    """Multiple choice, in the wording of LLM-Adapters."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    return [row(e["instruction"], e["output"], task_type=0) for e in entries]


def row(instruction: str, output: str, task_type: int) -> Row:
    """A row of the project's format; no set used here has a separate input."""
    return {"instruction": instruction, "input": "", "output": output, "task_type": task_type}


def rows_of(data: Path, questions: str, choices: str) -> list[Row]:
    """All sets, shuffled together by a fixed seed."""
    rows = question_rows(data / "webquestions" / questions)
    for name in tqdm(CHOICE_SETS, desc="reading", unit="set"):
        rows += choice_rows(data / "llm_adapters" / name / choices)
    random.Random(0).shuffle(rows)
    return rows


def main() -> None:
    """Command line; see the module's own words."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="folder of the public data sets")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--validation_rows", type=int, default=200, help="rows to evaluate on")
    args = parser.parse_args()
    train = rows_of(args.data, "trainmodel.json", "train.json")
    validation = rows_of(args.data, "val.json", "test.json")[: args.validation_rows]
    (args.target / "train").mkdir(parents=True, exist_ok=True)
    for file, rows in ((args.target / "train/train.json", train), (args.target / "validation.json", validation)):
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        known = sum(r["task_type"] for r in rows)
        print(f"{file}: {len(rows):,} rows, {known:,} of type 1 and {len(rows) - known:,} of type 0")


if __name__ == "__main__":
    main()
