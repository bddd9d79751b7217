"""From checked samples to token ids, batch by batch, and what became of the samples in numbers."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramoe.data.formats import Sample, SampleReader, seen
from loramoe.data.templates import Encoded, PromptTemplate, TemplateError

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What became of the samples of a data set.

    Attributes:
        samples: Samples read; 0 where a stream has not been counted.
        kept: Samples in the result.
        cut: Kept samples whose end was cut off at max_seq_length.
        dropped: Samples of which no token to learn is left at max_seq_length.
        special: Kept samples whose own words became a special token.
        tokens: Tokens of the kept samples, prompts included; 0 for a stream.
        max_token_id: Largest token id; -1 for a stream.
        longest: Tokens of the longest sample; 0 for a stream.
        task_types: Kept samples of each task type.
        max_seq_length: Most tokens of a sample.
    """

    samples: int
    kept: int
    cut: int
    dropped: int
    special: int
    tokens: int
    max_token_id: int
    longest: int
    task_types: dict[int, int]
    max_seq_length: int

    def __add__(self, other: DataReport) -> DataReport:
        """The report of two data sets together."""
        names = ("samples", "kept", "cut", "dropped", "special", "tokens")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        types = dict(sorted((Counter(self.task_types) + Counter(other.task_types)).items()))
        most = {name: max(getattr(self, name), getattr(other, name)) for name in ("max_token_id", "longest")}
        return replace(self, **sums, **most, task_types=types)

    def __str__(self) -> str:
        return self.describe()

    def describe(self, type_names: Mapping[int, str] | None = None) -> str:
        """The numbers in words."""
        if not self.samples:
            return "a stream of unknown length, tokenised while training"
        named = {key: f"type {key}" for key in self.task_types} | dict(type_names or {})
        types = ", ".join(f"{named[key]}: {count:,}" for key, count in sorted(self.task_types.items()))
        tokens = f", tokens: {self.tokens:,}" if self.tokens else ", tokenised while training"
        lines = [f"samples read: {self.samples:,}, kept: {self.kept:,} ({types}){tokens}"]
        if self.cut:
            lines.append(f"answers cut at max_seq_length={self.max_seq_length}: {self.cut:,}")
        if self.dropped:
            lines.append(f"samples dropped, as the prompt fills max_seq_length={self.max_seq_length}: {self.dropped:,}")
        if self.special:
            lines.append(f"samples whose own text holds a special token: {self.special:,}")
        return "\n".join(lines)


class FaultyError(ValueError):
    """Some sample of a batch is faulty; which one, a second reading finds."""


@dataclass(frozen=True)
class Encoder:
    """Makes token ids of values, for `map` of the `datasets` library.

    Attributes:
        reader: Makes samples of values.
        template: Makes token ids of samples.
        max_seq_length: Most tokens of a sample.
        streaming: Skip faulty samples, instead of failing.
    """

    reader: SampleReader
    template: PromptTemplate
    max_seq_length: int
    streaming: bool = False

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Encodes a batch; samples with no token left to learn are left out."""
        values = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        columns: dict[str, list[Any]] = {name: [] for name in token_features(marks=not self.streaming)}
        for value, made in zip(values, self.encode(values), strict=True):
            if isinstance(made, list):
                self._refuse(value, made[0])
                continue
            sample, encoded = made
            short = encoded.truncated(self.max_seq_length)
            if short is not None:
                row = (short.input_ids, short.labels, sample.task_type, len(short.input_ids))
                marks = (len(encoded.input_ids) > self.max_seq_length, encoded.special)
                for column, item in zip(columns.values(), row + marks, strict=False):
                    column.append(item)
        return columns

    def encode(self, values: Sequence[object]) -> list[tuple[Sample, Encoded] | list[str]]:
        """Encodes values; gives for each the sample and its tokens, or what is wrong with it."""
        samples = [self.reader(value) for value in values]
        codes = iter(self.template.encode([one.messages for one in samples if not isinstance(one, list)]))
        made: list[tuple[Sample, Encoded] | list[str]] = []
        for sample in samples:
            if isinstance(sample, list):
                made.append(sample)
                continue
            encoded = next(codes)
            made.append([f": {encoded}"] if isinstance(encoded, TemplateError) else (sample, encoded))
        return made

    def check(self, value: object) -> tuple[Sample, Encoded] | list[str]:
        """Encodes one value."""
        return self.encode([value])[0]

    def _refuse(self, value: object, problem: str) -> None:
        if not self.streaming:
            raise FaultyError
        logger.warning("a sample is skipped%s (it is %s)", problem, seen(value))


def token_features(marks: bool = False) -> Features:
    """Columns of tokenised samples; with marks, also whether a sample was cut and holds a special token."""
    from datasets import Features, Sequence, Value

    ids = Sequence(Value("int32"))
    columns = {"input_ids": ids, "labels": ids, "task_types": Value("int64"), "length": Value("int32")}
    return Features(columns | ({"cut": Value("bool"), "special": Value("bool")} if marks else {}))


def count(dataset: Dataset, samples: int, max_seq_length: int) -> DataReport:
    """Counts what became of samples."""
    import pyarrow.compute as pc

    types: Counter[int] = Counter()
    sums: Counter[str] = Counter()
    largest, longest = -1, 0
    for table in dataset.with_format("arrow").iter(10_000):
        types.update(table["task_types"].to_pylist())
        sums.update({name: pc.sum(table[name]).as_py() for name in ("length", "cut", "special")})
        largest = max(largest, pc.max(pc.list_flatten(table["input_ids"])).as_py())
        longest = max(longest, pc.max(table["length"]).as_py())
    return DataReport(
        samples=samples,
        kept=len(dataset),
        cut=sums["cut"],
        dropped=samples - len(dataset),
        special=sums["special"],
        tokens=sums["length"],
        max_token_id=largest,
        longest=longest,
        task_types=dict(sorted(types.items())),
        max_seq_length=max_seq_length,
    )


def hash_of(parts: Any) -> str:
    """The SHA-256 hash of values of JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes a tokenizer as it would be saved, without the padding and truncation that its last call left in it."""
    contents = [type(tokenizer).__name__]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(file for file in Path(folder).rglob("*") if file.is_file()):
            content = file.read_text(encoding="utf-8", errors="surrogateescape")
            if file.name == "tokenizer.json":
                content = json.dumps({**json.loads(content), "truncation": None, "padding": None})
            contents += [file.name, content]
    return hash_of(contents)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library from printing the errors that the second reading explains."""
    from datasets import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def raise_if_of_machine(error: BaseException) -> None:
    """Raises an error that no other data would prevent: a full disk, missing permissions, a killed process."""
    if "abruptly died" in str(error):
        raise RuntimeError(
            "a process that tokenises ended before its work was done (killed, often because memory ran out). "
            "Start again, with fewer processes if memory is short."
        ) from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            raise cause
        cause = cause.__cause__
