"""From one data set to token ids: read, checked, tokenised and cached, or streamed.

The `datasets` library stores and maps the samples in batches, memory-mapped. A finished data set is a folder whose name
is a hash of all that decides its tokens.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Final

from loramoe.data.chat import PromptTemplate, get_template
from loramoe.data.formats import SampleReader, seen
from loramoe.data.read import checked, locate
from loramoe.data.sources import DatasetError, DataSource, data_files, file_hash, hash_of, kind_of
from loramoe.data.templates import TemplateError, tokenizer_hash

FORMAT_VERSION: Final = 4
"""Raised whenever this package would make other columns or tokens of the same data."""

RAW_COLUMNS: Final = ("messages", "task_type", "where")
COLUMNS: Final = ("input_ids", "labels", "task_types", "length")
MARKS: Final = ("cut", "special", "where", "problem")
"""For the report: was the sample cut, does it hold a special token, and what did the template refuse."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What became of the samples of a data set; of a stream, only what reading its files tells."""

    samples: int  # read; 0 where a stream has not been counted
    kept: int
    task_types: dict[int, int]  # kept samples of each type
    max_seq_length: int
    cut: int = 0  # kept samples whose end was cut off at max_seq_length
    dropped: int = 0  # samples of which no token to learn is left at max_seq_length
    special: int = 0  # kept samples whose own words became a special token
    tokens: int = 0  # of the kept samples, prompts included
    max_token_id: int = -1
    longest: int = 0  # tokens of the longest sample

    def __add__(self, other: DataReport) -> DataReport:
        ours, theirs = asdict(self), asdict(other)
        both = {name: ours[name] + theirs[name] for name in ("samples", "kept", "cut", "dropped", "special", "tokens")}
        both |= {name: max(ours[name], theirs[name]) for name in ("max_seq_length", "max_token_id", "longest")}
        return DataReport(task_types=dict(Counter(self.task_types) + Counter(other.task_types)), **both)

    def __str__(self) -> str:
        if not self.samples:
            return "a stream of unknown length, tokenised while training"
        types = ", ".join(f"type {key}: {count:,}" for key, count in sorted(self.task_types.items()))
        tokens = f"tokens: {self.tokens:,}" if self.tokens else "tokenised while training"
        limit = f"max_seq_length={self.max_seq_length}"
        notes = {
            f"answers cut at {limit}": self.cut,
            f"samples dropped, as the prompt fills {limit}": self.dropped,
            "samples whose own text holds a special token": self.special,
        }
        lines = [f"samples read: {self.samples:,}, kept: {self.kept:,} ({types}), {tokens}"]
        return "\n".join(lines + [f"{note}: {count:,}" for note, count in notes.items() if count])


@dataclass
class Encoder:
    """Makes token ids of conversations, for `map` of the `datasets` library; a stream skips what cannot be rendered."""

    template: PromptTemplate
    max_seq_length: int
    streaming: bool = False
    reader: SampleReader | None = None  # of values that have not been read yet
    skipped: int = 0

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Encodes a batch; samples with no token left to learn are left out."""
        batch = self._read(batch, self.reader) if self.reader else batch
        rows: list[tuple[Any, ...]] = []
        encoded = self.template.encode(batch["messages"])
        for one, task_type, where in zip(encoded, batch["task_type"], batch["where"], strict=True):
            if isinstance(one, TemplateError) and self.streaming:
                self._skip(f"{where}: {one}")
            elif isinstance(one, TemplateError):
                rows.append(([], [], task_type, 0, False, False, where, f": {one}"))
            elif short := one.truncated(self.max_seq_length):
                marks = len(one.input_ids) > self.max_seq_length, one.special, None, None
                rows.append((short.input_ids, short.labels, task_type, len(short.input_ids), *marks))
        return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS + MARKS)}

    def _read(self, batch: Mapping[str, list[Any]], reader: SampleReader) -> dict[str, list[Any]]:
        rows: list[tuple[Any, ...]] = []
        for values in zip(*batch.values(), strict=True):
            value = dict(zip(batch, values, strict=True))
            sample = reader(value)
            if isinstance(sample, list):
                self._skip(f"{seen(value)}{sample[0]}")
            else:
                rows.append((sample.messages, sample.task_type, seen(value)))
        return {name: [row[place] for row in rows] for place, name in enumerate(RAW_COLUMNS)}

    def _skip(self, problem: str) -> None:
        self.skipped += 1
        logger.warning("sample skipped (%d so far): %s", self.skipped, problem)


@dataclass(frozen=True)
class Tokeniser:
    """How data sets are tokenised."""

    tokenizer: Any
    template: str = "release"
    max_seq_length: int = 1024  # what is longer is cut; a sample with no token left to learn is dropped
    task_types: Collection[int] | None = None  # of the experts; None accepts any integer
    num_proc: int = 1  # processes that tokenise; the result does not depend on it
    cache_dir: str | os.PathLike[str] | None = None  # default: `loramoe` in the cache of the `datasets` library

    def __post_init__(self) -> None:
        for name, least in (("max_seq_length", 2), ("num_proc", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {name}={getattr(self, name)}. Raise it.")

    def recipe(self) -> dict[str, Any]:
        """What decides the tokens of a sample."""
        types = None if self.task_types is None else sorted(set(self.task_types))
        numbers = {"format_version": FORMAT_VERSION, "max_seq_length": self.max_seq_length, "task_types": types}
        return {"tokenizer": tokenizer_hash(self.tokenizer), "template": self.template, **numbers}

    def store(self, source: DataSource) -> tuple[Any, DataReport, str]:
        """Tokenises a data set, or finds the result; returns it with its report and a hash of the source's content."""
        import datasets
        from filelock import FileLock

        encoder = self._encoder()  # refuses a template that does not suit, before any work
        data = data_files(source.path) if source.local else load_hub(source)
        content = _content_hash(data)
        dated = self.template == "chat" and "strftime_now" in str(self.tokenizer.chat_template)
        day = str(datetime.now(timezone.utc).date()) if dated else None
        cache = Path(self.cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "loramoe")).expanduser()
        folder = cache / hash_of({**self.recipe(), "day": day, "content": content, **source.recipe()})
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # one process tokenises, the others wait
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=cache) as unfinished:
                    self._build(source, data, encoder, Path(unfinished)).rename(folder)
        fields = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        types = {int(key): number for key, number in fields.pop("task_types").items()}
        parts = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("*.arrow"))]
        dataset = datasets.concatenate_datasets(parts).select_columns(list(COLUMNS))
        return dataset, DataReport(**fields, task_types=types), content

    def stream(self, source: DataSource) -> tuple[Any, DataReport, str]:
        """As `store`, but tokenises a data set while it is read; samples of files are checked and counted before."""
        from datasets import IterableDataset

        encoder, types, reader = self._encoder(streaming=True), Counter[int](), source.reader(self.task_types)
        if source.local:
            files = data_files(source.path)
            content = _content_hash(files)
            types.update(row["task_type"] for row in read_rows(source, files, reader))
            # Each worker gets some files of a list; `max_samples` is of all files together.
            arguments = {"source": source, "data": tuple(files) if source.max_samples else files, "reader": reader}
            raw = IterableDataset.from_generator(read_rows, gen_kwargs=arguments)
        else:
            raw, content = load_hub(source, streaming=True), f"{source.path} {source.revision}"
            raw = raw.take(source.max_samples) if source.max_samples else raw
            encoder.reader = reader
        columns = raw.column_names or list(next(iter(raw)))
        made = raw.map(encoder, batched=True, batch_size=64, remove_columns=columns, features=_features())
        report = DataReport(types.total(), types.total(), dict(sorted(types.items())), self.max_seq_length)
        return made.select_columns(list(COLUMNS)), report, content

    def _encoder(self, streaming: bool = False) -> Encoder:
        return Encoder(get_template(self.template, self.tokenizer), self.max_seq_length, streaming)

    def _build(self, source: DataSource, data: Any, encoder: Encoder, unfinished: Path) -> Path:
        """Tokenises a data set into a folder."""
        from datasets import Dataset
        from datasets.exceptions import DatasetGenerationError

        data = tuple(data) if source.local else data  # of a list, the library would give one file at a time
        arguments = {"source": source, "data": data, "reader": source.reader(self.task_types)}
        try:
            raw = Dataset.from_generator(read_rows, cache_dir=str(unfinished), gen_kwargs=arguments)
        except DatasetGenerationError as error:  # hides a DatasetError, or that the disk is full
            raise (error.__cause__ or error) from None
        folder = unfinished / "tokens"
        folder.mkdir()
        made = raw.map(
            encoder,
            batched=True,
            remove_columns=raw.column_names,
            features=_features(),
            num_proc=self.num_proc if self.num_proc > 1 else None,
            cache_file_name=str(folder / "tokens.arrow"),
            new_fingerprint=unfinished.name,
            desc="Tokenising",
        )
        report = _report(made.data.table, len(raw), self.max_seq_length)
        if not report.kept:
            limit = f"max_seq_length={self.max_seq_length}"
            raise DatasetError(f"{source.path}: none of the {report.samples:,} samples fits {limit}. Raise it.")
        (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
        return folder


def read_rows(source: DataSource, data: Any, reader: SampleReader) -> Iterator[dict[str, Any]]:
    """Reads the samples of files, or of a `Dataset`, as rows for the `datasets` library."""
    rows = ((f"{source.path}, row {number}", row) for number, row in enumerate(data, start=1))
    for where, sample in checked(islice(locate(data) if source.local else rows, source.max_samples), reader):
        yield dict(zip(RAW_COLUMNS, (sample.messages, sample.task_type, where), strict=True))


def load_hub(source: DataSource, streaming: bool = False) -> Any:
    """Loads a data set of the hub."""
    from datasets import load_dataset

    options = {"split": source.split, "revision": source.revision, "streaming": streaming}
    try:
        return load_dataset(source.path, source.subset, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"data set {source.path} is no file or folder here (looked in {Path.cwd()}), and the hub does not give it "
            f"({type(error).__name__}: {reason}). Correct path, subset, split or revision, or check the network."
        ) from error


def _content_hash(data: Any) -> str:
    if isinstance(data, list):
        return hash_of([("".join(kind_of(file)), file_hash(file)) for file in data])
    return str(data._fingerprint)


def _features() -> Any:
    from datasets import Features, Value

    ids, flag, text = [Value("int32")], Value("bool"), Value("string")
    kinds = (ids, ids, Value("int64"), Value("int32"), flag, flag, text, text)
    return Features(dict(zip(COLUMNS + MARKS, kinds, strict=True)))


def _report(table: Any, samples: int, max_seq_length: int) -> DataReport:
    """Counts what is in a table of token ids; raises what the template refused."""
    import pyarrow.compute as pc

    refused = table.select(["where", "problem"]).drop_null().to_pylist()
    for _ in checked(((one["where"], one["problem"]) for one in refused), lambda problem: [str(problem)]):
        pass
    types = {one["values"]: one["counts"] for one in pc.value_counts(table["task_types"]).to_pylist()}
    cut, special, tokens = (pc.sum(table[name]).as_py() or 0 for name in ("cut", "special", "length"))
    return DataReport(
        samples,
        len(table),
        dict(sorted(types.items())),
        max_seq_length,
        cut=cut,
        special=special,
        dropped=samples - len(table),
        tokens=tokens,
        max_token_id=pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0,
        longest=pc.max(table["length"]).as_py() or 0,
    )
