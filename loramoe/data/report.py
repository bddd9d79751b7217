"""What became of the rows of a dataset, in numbers that are printed at the start of a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class TokeniseReport:
    """What became of the rows of a dataset.

    Attributes:
        rows: Rows read.
        kept: Rows that are in the dataset.
        cut: Kept rows whose answer was cut at max_seq_length.
        dropped: Rows whose prompt left no room for a single token of the answer.
        special: Kept rows whose own text became a special token (only the chat template lets it).
        tokens: Tokens of the kept rows, prompts and answers.
        task_types: Kept rows of each task type.
        max_seq_length: The length in tokens that rows were held to.
    """

    rows: int
    kept: int
    cut: int
    dropped: int
    special: int
    tokens: int
    task_types: dict[int, int]
    max_seq_length: int

    def __str__(self) -> str:
        kept = f"{self.kept:,} ({_by_type(self.task_types)})"
        lines = [f"rows read: {self.rows:,}, kept: {kept}, tokens: {self.tokens:,}"]
        if self.cut:
            lines.append(f"answers cut at max_seq_length={self.max_seq_length}: {self.cut:,}")
        if self.dropped:
            lines.append(f"rows dropped, as the prompt fills max_seq_length={self.max_seq_length}: {self.dropped:,}")
        if self.special:
            lines.append(
                f"rows with the text of a special token, which the chat template takes for one: {self.special:,}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class StreamReport:
    """What is known of the rows of a stream before they are tokenised.

    Attributes:
        rows: Rows read.
        task_types: Rows of each task type.
        max_seq_length: The length in tokens that rows will be held to.
    """

    rows: int
    task_types: dict[int, int]
    max_seq_length: int

    def __str__(self) -> str:
        return (
            f"rows read: {self.rows:,} ({_by_type(self.task_types)})\n"
            f"tokenised when they are needed, so that how many are longer than max_seq_length={self.max_seq_length} is "
            "not known yet"
        )


def total(reports: Iterable[TokeniseReport], max_seq_length: int) -> TokeniseReport:
    """Adds up the reports of the parts of a dataset.

    Args:
        reports: One for each part.
        max_seq_length: The length in tokens that all were held to.

    Returns:
        The report of the whole.
    """
    numbers: Counter[str] = Counter()
    task_types: Counter[int] = Counter()
    for report in reports:
        task_types.update(report.task_types)
        numbers.update({name: value for name, value in asdict(report).items() if name in _SUMS})
    sums = {name: numbers[name] for name in _SUMS}
    return TokeniseReport(**sums, task_types=dict(sorted(task_types.items())), max_seq_length=max_seq_length)


_SUMS = ("rows", "kept", "cut", "dropped", "special", "tokens")


def dumps(report: TokeniseReport) -> bytes:
    """Writes a report as JSON."""
    return json.dumps(asdict(report)).encode()


def load(file: Path) -> TokeniseReport:
    """Reads what `dumps` wrote."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    task_types = {int(task_type): count for task_type, count in fields.pop("task_types").items()}
    return TokeniseReport(**fields, task_types=task_types)


def _by_type(task_types: Mapping[int, int]) -> str:
    return ", ".join(f"type {task_type}: {count:,}" for task_type, count in sorted(task_types.items()))
