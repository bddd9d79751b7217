"""Downstream tasks: what the answer needs stands in the question, or is chosen from it. Rows are of task type 0."""

from __future__ import annotations

import re
from pathlib import Path
from string import digits
from typing import Any, Final, Literal

from experiments.knowledge_forgetting.real.files import read
from experiments.knowledge_forgetting.real.items import Item
from experiments.knowledge_forgetting.scale import Row

CHOICE_FOLDERS: Final = {"openbookqa": ("openbookqa",), "arc": ("ARC-Easy", "ARC-Challenge")}
UNASKED: Final = "Answer"  # instead of a question, to tell what the question adds
READING_INSTRUCTION: Final = "Answer the question with words of the text:"
PASSAGE: Final = 240  # characters around an answer, of paragraphs of 800
LONGEST: Final = 400  # characters of a row, about 100 tokens: one longer row makes its whole batch longer
File = Literal["train", "test"]
Task = tuple[Row, Item]
"""One task as a row of training and as an item."""


def row(instruction: str, output: str, input: str = "") -> Row:
    """A row of training of a downstream task."""
    return Row(instruction=instruction, input=input, output=output, task_type=0)


def is_short(task: Task) -> bool:
    """Whether a task is kept: see `LONGEST`."""
    return sum(len(task[0][name]) for name in ("instruction", "input", "output")) <= LONGEST


def choices(data: Path, name: str, file: File) -> list[Task]:
    """OpenBookQA and ARC, as open questions: the choices are compared, but not shown.

    To pick one of choices that stand in the prompt, 135M parameters do not learn from a few thousand rows.
    """
    entries = [entry for folder in CHOICE_FOLDERS[name] for entry in read(data, f"llm_adapters/{folder}/{file}.json")]
    return [task for entry in entries if (task := _choice(entry)) and is_short(task)]


def _choice(entry: dict[str, Any]) -> Task | None:
    """Of "… question: Why? Answer1: a Answer2: b Answer format: …"; None if choices are alike, or none is right."""
    question, _, choices = entry["instruction"].split("\n\nAnswer format")[0].partition("\n\nAnswer1: ")
    question = question.split("question: ", maxsplit=1)[-1]
    texts = tuple(text.strip() for text in re.split(r"Answer\d: ", choices))
    right = int(entry["answer"].removeprefix("answer")) - 1
    if len(set(texts)) < len(texts) or right >= len(texts) or not all(texts):
        return None
    return row(question, texts[right]), Item(question, texts, right, unasked=UNASKED)


def boolq(data: Path, file: File) -> list[Task]:
    """BoolQ without its passages."""
    entries = read(data, f"llm_adapters/boolq/{file}.json")
    words = "true", "false"
    return [
        (row(entry["instruction"], entry["answer"]), Item(entry["instruction"], words, words.index(entry["answer"])))
        for entry in entries
    ]


def gsm8k(data: Path, file: File) -> list[Task]:
    """GSM8K. Its final answers are out of reach for 135M parameters, so an item asks for its last computation.

    The model reads the question and the solution up to the last computation, such as "48 + 24 =", and has to say the
    result; the other candidates are the result with a further digit, since "7" must not do for "72", nor "72" for "7".
    Rows have the whole solution, without the marks for a calculator.
    """
    entries = read(data, f"gsm8k/{file}.jsonl")
    tasks = (_computation(entry["question"], entry["answer"]) for entry in entries)
    return [task for task in tasks if task and is_short(task)]


def _computation(question: str, solution: str) -> Task | None:
    """None if the solution marks no computation."""
    marks = list(re.finditer(r"<<[^<>]*>>([\d.,]+\d|\d)", solution))
    if not marks:
        return None
    given = _plain(solution[: marks[-1].start()])
    result = marks[-1][1]
    item = Item(question, (result, *(result + digit for digit in digits)), given=given)
    return row(question, _plain(solution)), item


def _plain(solution: str) -> str:
    return re.sub(r"<<[^<>]*>>", "", solution)


def reading(data: Path) -> list[list[Task]]:
    """XQuAD's English questions about passages, a list for each article: no article may be in two splits."""
    articles = read(data, "xquad_en/xquad.en.json")["data"]
    tasks = ([_reading(q, p["context"]) for p in article["paragraphs"] for q in p["qas"]] for article in articles)
    return [[task for task in its if is_short(task)] for its in tasks]


def _reading(entry: dict[str, Any], context: str) -> Task:
    answer = entry["answers"][0]
    passage = around(context, answer["answer_start"], len(answer["text"]))
    instruction = f"{READING_INSTRUCTION} {entry['question']}"
    return row(instruction, answer["text"], passage), Item(instruction, (answer["text"],), input=passage)


def around(context: str, start: int, length: int, size: int = PASSAGE) -> str:
    """Whole sentences about an answer: its own, then in turn one after and one before while they fit.

    Args:
        context: The paragraph.
        start: Where the answer begins.
        length: Its length.
        size: Most characters, if its own sentence is not longer.
    """
    cuts = [0, *(match.end() for match in re.finditer(r"[.!?] +(?=[A-Z])", context)), len(context)]
    first = max(index for index, cut in enumerate(cuts[:-1]) if cut <= start)
    last = min(index for index, cut in enumerate(cuts) if cut >= start + length)
    for turn in range(2 * len(cuts)):
        wider = (first, last + 1) if turn % 2 == 0 else (first - 1, last)
        if wider[0] >= 0 and wider[1] < len(cuts) and cuts[wider[1]] - cuts[wider[0]] <= size:
            first, last = wider
    return context[cuts[first] : cuts[last]].strip()
