"""From one data set to token ids: read, checked, tokenised and cached, or streamed.

The `datasets` library stores and maps the samples in batches, memory-mapped, in a folder whose name is a hash of all
that decides the tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from loramoe.data.chat import PromptTemplate, get_template
from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.formats import seen
from loramoe.data.read import checked, locate
from loramoe.data.sources import DatasetError, DataSource, data_files, hash_of, kind_of
from loramoe.data.templates import TemplateError, tokenizer_hash

FORMAT_VERSION: Final = 5
"""Raised whenever this package would make other columns or tokens of the same data."""

RAW_COLUMNS: Final = ("messages", "task_type", "where")
COLUMNS: Final = ("input_ids", "labels", "task_types", "length")
MARKS: Final = ("cut", "special", "max_token_id")
"""For the report: was the sample cut, did its own words become a special token, and its largest id."""


@dataclass(frozen=True)
class DataReport:
    """What became of the samples of a data set; of a stream, only what reading its files tells."""

    samples: int  # read; 0 where a stream has not been counted
    kept: int  # the others have no token to learn within max_seq_length
    task_types: dict[int, int]  # kept samples of each type
    max_seq_length: int
    cut: int = 0  # kept samples whose end was cut off at max_seq_length
    special: int = 0  # kept samples whose own words became a special token
    tokens: int = 0  # of the kept samples, prompts included
    max_token_id: int = -1
    longest: int = 0  # tokens of the longest sample

    def __add__(self, other: DataReport) -> DataReport:
        ours, theirs = asdict(self), asdict(other)
        both = {name: ours[name] + theirs[name] for name in ("samples", "kept", "cut", "special", "tokens")}
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
            f"samples dropped, as the prompt fills {limit}": self.samples - self.kept,
            "samples whose own text holds a special token": self.special,
        }
        lines = [f"samples read: {self.samples:,}, kept: {self.kept:,} ({types}), {tokens}"]
        return "\n".join(lines + [f"{note}: {count:,}" for note, count in notes.items() if count])


@dataclass(frozen=True)
class Tokeniser:
    """How data sets are tokenised."""

    tokenizer: Any
    template: str = "release"
    max_seq_length: int = 1024  # what is longer is cut; a sample with no token left to learn is dropped
    task_types: Collection[int] | None = None  # of the experts; None accepts any integer
    num_proc: int = 1  # processes that tokenise; the result does not depend on it
    cache_dir: str | os.PathLike[str] | None = None  # default: `loramoe` in the cache of the `datasets` library

    def store(self, source: DataSource) -> tuple[Any, DataReport, str]:
        """Tokenises a data set, or finds the result; returns it with its report and a hash of what decides it."""
        import datasets
        from datasets.exceptions import DatasetGenerationError
        from filelock import FileLock

        encoding = self._encoding()  # refuses a tokenizer that does not suit, before any work
        data: Any = tuple(data_files(source.path)) if source.local else load_hub(source)
        key = self._key(source, _content_hash(data) if source.local else data._fingerprint)
        folder = Path(self.cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "loramoe")).expanduser() / key
        folder.mkdir(parents=True, exist_ok=True)
        dated = self.template == "chat" and "strftime_now" in str(self.tokenizer.chat_template)
        tokens = folder / f"tokens-{datetime.now(timezone.utc).date() if dated else 'undated'}.arrow"
        arguments = {"source": source, "data": data, "read": partial(source, task_types=self.task_types)}
        with FileLock(folder / "lock"):  # one process tokenises, the others wait
            try:
                raw = datasets.Dataset.from_generator(read_rows, cache_dir=str(folder), gen_kwargs=arguments)
            except DatasetGenerationError as error:  # hides a DatasetError, or that the disk is full
                raise (error.__cause__ or error) from None
            processes = {"num_proc": self.num_proc} if self.num_proc > 1 else {}
            files = {"cache_file_name": str(tokens), "new_fingerprint": key[:32]}
            made = raw.map(**encoding, **processes, **files, desc="Tokenising")
        if not len(made):
            limit = f"max_seq_length={self.max_seq_length}"
            raise DatasetError(f"{source.path}: none of the {len(raw):,} samples fits {limit}. Raise it.")
        return made.select_columns(list(COLUMNS)), _report(made.data.table, len(raw), self.max_seq_length), key

    def stream(self, source: DataSource) -> tuple[Any, DataReport, str]:
        """As `store`, but tokenises a data set while it is read; samples of files are checked and counted before."""
        from datasets import IterableDataset

        encoding, read = self._encoding(skip=True), partial(source, task_types=self.task_types)
        types = Counter[int]()
        if source.local:
            files = data_files(source.path)
            content = _content_hash(files)
            types.update(row["task_type"] for row in read_rows(source, files, read))
            # Each worker gets some files of a list; `max_samples` is of all files together.
            arguments = {"source": source, "data": tuple(files) if source.max_samples else files, "read": read}
            raw = IterableDataset.from_generator(read_rows, gen_kwargs=arguments)
        else:
            content, hub = f"{source.path} {source.revision}", load_hub(source, streaming=True)
            hub = hub.take(source.max_samples) if source.max_samples else hub
            options = {"remove_columns": hub.column_names or list(next(iter(hub))), "batched": True, "batch_size": 64}
            raw = hub.map(read_batch, fn_kwargs={"read": read, "path": source.path}, **options)
        made = raw.map(**encoding, batch_size=64).select_columns(list(COLUMNS))
        report = DataReport(types.total(), types.total(), dict(sorted(types.items())), self.max_seq_length)
        return made, report, self._key(source, content)

    def _key(self, source: DataSource, content: str) -> str:
        of_source = ("task_type", "default_task_type", "max_samples", "format", "columns")
        decisive = {"content": content, **{name: getattr(source, name) for name in of_source}}
        decisive |= {"version": FORMAT_VERSION, "template": self.template, "max_seq_length": self.max_seq_length}
        types = None if self.task_types is None else sorted(set(self.task_types))
        return hash_of({**decisive, "types": types, "tokenizer": tokenizer_hash(self.tokenizer)})

    def _encoding(self, skip: bool = False) -> dict[str, Any]:
        """Arguments of `map` of the `datasets` library."""
        from datasets import Features, Value

        ids, flag, number = [Value("int32")], Value("bool"), Value("int32")
        kinds = (ids, ids, Value("int64"), number, flag, flag, number)
        template = get_template(self.template, self.tokenizer)
        return {
            "function": encode_batch,
            "fn_kwargs": {"template": template, "max_seq_length": self.max_seq_length, "skip": skip},
            "batched": True,
            "remove_columns": list(RAW_COLUMNS),
            "features": Features(dict(zip(COLUMNS + MARKS, kinds, strict=True))),
        }


def read_rows(source: DataSource, data: Iterable[Any], read: Any) -> Iterator[dict[str, Any]]:
    """Reads the samples of files, or of a data set of the hub, as rows for the `datasets` library."""
    rows = ((f"{source.path}, row {number}", row) for number, row in enumerate(data, start=1))
    for where, sample in checked(islice(locate(data) if source.local else rows, source.max_samples), read):
        yield dict(zip(RAW_COLUMNS, (sample.messages, sample.task_type, where), strict=True))


def read_batch(batch: Mapping[str, list[Any]], read: Any, path: str) -> dict[str, list[Any]]:
    """Reads samples of a stream of the hub; faulty ones are skipped."""
    values = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    good = list(checked(((f"{path}, {seen(value)}", value) for value in values), read, skip=True))
    columns = [one.messages for _, one in good], [one.task_type for _, one in good], [where for where, _ in good]
    return dict(zip(RAW_COLUMNS, columns, strict=True))


def encode_batch(
    batch: Mapping[str, list[Any]], template: PromptTemplate, max_seq_length: int, skip: bool
) -> dict[str, list[Any]]:
    """Encodes samples; those with no token left to learn are left out, as are refused ones with `skip`."""
    rows: list[tuple[Any, ...]] = []
    values = zip(batch["where"], zip(template.encode(batch["messages"]), batch["task_type"], strict=True), strict=True)
    for _, (encoded, task_type) in checked(values, _refuse, skip):
        ids, labels = encoded.input_ids[:max_seq_length], encoded.labels[:max_seq_length]
        if any(label != IGNORE_INDEX for label in labels):
            marks = len(encoded.input_ids) > max_seq_length, encoded.special, max(ids)
            rows.append((ids, labels, task_type, len(ids), *marks))
    return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS + MARKS)}


def _refuse(pair: Any) -> Any:
    return [f": {pair[0]}"] if isinstance(pair[0], TemplateError) else pair


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


def _content_hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{kind_of(file)} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def _report(table: Any, samples: int, max_seq_length: int) -> DataReport:
    import pyarrow.compute as pc

    types = {one["values"]: one["counts"] for one in pc.value_counts(table["task_types"]).to_pylist()}
    cut, special, tokens = (pc.sum(table[name]).as_py() for name in ("cut", "special", "length"))
    longest, largest = (pc.max(table[name]).as_py() for name in ("length", "max_token_id"))
    limits = {"max_seq_length": max_seq_length, "max_token_id": largest, "longest": longest}
    counts = {"kept": len(table), "cut": cut, "special": special, "tokens": tokens}
    return DataReport(samples, task_types=dict(sorted(types.items())), **counts, **limits)
