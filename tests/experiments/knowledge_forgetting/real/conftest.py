"""A made-up folder of data in the form of the real one, and the embedded model; the real ones where they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

REPO = Path(__file__).parents[4]
TINY = REPO / "data/tiny_llama"
SMOLLM2 = REPO / "models/smollm2-135m"
KINDS = ("river", "city", "king", "song", "metal")


def write(file: Path, content: Any) -> None:
    """As one JSON value, or one a line if the file is `.jsonl`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, content)) if file.suffix == ".jsonl" else json.dumps(content)
    file.write_text(text, encoding="utf-8")


def web(name: str, count: int) -> list[dict[str, Any]]:
    kinds = (KINDS[number % len(KINDS)] for number in range(count))
    return [
        {"qId": f"{name}{n}", "qText": f"what {kind} is {name} {n}?", "answers": [f"{kind} {n}"]}
        for n, kind in enumerate(kinds)
    ]


def choice(number: int, kind: str) -> dict[str, Any]:
    texts = " ".join(f"Answer{place + 1}: word{number + place}" for place in range(4))
    question = f"Please choose the correct answer to the question: Which {kind} of {number}?\n\n{texts}"
    answer = f"answer{number % 4 + 1}"
    ending = "\n\nAnswer format: answer1/answer2/answer3/answer4"
    return {
        "instruction": question + ending,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def true_or_false(number: int) -> dict[str, Any]:
    answer = ("true", "false")[number % 2]
    return {"instruction": f"true or false, question: is {number} even?", "output": answer, "answer": answer}


def computation(number: int) -> dict[str, str]:
    solution = f"He has 1 + {number} = <<1+{number}={number + 1}>>{number + 1} eggs.\n#### {number + 1}"
    return {"question": f"Tom has 1 egg and buys {number}. How many?", "answer": solution}


def article(number: int) -> dict[str, Any]:
    context = f"The town {number} is old. It has {number} gates. The walls are high."
    start = context.index(f"{number} gates")
    answer = {"text": f"{number} gates", "answer_start": start}
    return {
        "paragraphs": [{"context": context, "qas": [{"question": f"What has town {number}?", "answers": [answer]}]}]
    }


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    facts = [{"sub_label": f"Town {n}", "obj_label": f"Land {n % 6}"} for n in range(200)]
    write(folder / "trex/facts/P17.jsonl", [*facts, {"sub_label": "Town 0", "obj_label": "Land 5"}])
    write(folder / "trex/patterns/P17.jsonl", [{"pattern": "[Y] has [X] ."}, {"pattern": "[X] is located in [Y] ."}])
    write(folder / "trex/facts/P36.jsonl", [{"sub_label": f"Land {n}", "obj_label": f"Town {n}"} for n in range(60)])
    write(folder / "trex/patterns/P36.jsonl", [{"pattern": "The capital of [X] is [Y]."}])
    write(folder / "trex/facts/P31.jsonl", facts)
    write(folder / "trex/patterns/P31.jsonl", [{"pattern": "[Y] such as [X]."}])
    for name, count in (("trainmodel", 60), ("val", 30), ("test", 40)):
        write(folder / f"webquestions/{name}.json", web(name, count))
    natural = [{"question": f"who is king {n}", "answer": [f"Henry {n}"]} for n in range(600)]
    write(folder / "nq_open/NQ-open.dev.jsonl", natural)
    for name in ("openbookqa", "ARC-Easy", "ARC-Challenge"):
        write(folder / f"llm_adapters/{name}/train.json", [choice(n, name) for n in range(320)])
        write(folder / f"llm_adapters/{name}/test.json", [choice(n, name) for n in range(320, 340)])
    write(folder / "llm_adapters/boolq/train.json", [true_or_false(n) for n in range(320)])
    write(folder / "llm_adapters/boolq/test.json", [true_or_false(n) for n in range(320, 340)])
    write(folder / "gsm8k/train.jsonl", [computation(n) for n in range(320)])
    write(folder / "gsm8k/test.jsonl", [computation(n) for n in range(320, 340)])
    write(folder / "xquad_en/xquad.en.json", {"data": [article(n) for n in range(48)]})
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY).eval()


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("LORAMOE_DATA")
    if folder is None or not SMOLLM2.is_dir():
        pytest.skip("needs LORAMOE_DATA, the folder of public data, and models/smollm2-135m (scripts/get_smollm2.sh)")
    return Path(folder)
