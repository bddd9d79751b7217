"""From one data set to token ids: read, checked, tokenised and cached by the `datasets` library, or streamed.

The library reads and maps in batches, memory-mapped. Where it fails, plain Python reads again and names file, line and
field of what is wrong. If nothing is, as with a field of mixed types that no sample needs, the samples that
Python reads are taken. A finished data set is a folder whose name is a hash of all that decides its tokens.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loramoe.data import read as reading
from loramoe.data.formats import Sample, SampleReader, seen
from loramoe.data.sources import DatasetError, DataSource, data_files, hash_of, kind_of
from loramoe.data.templates import Encoded, PromptTemplate, TemplateError, get_template, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION: Final = 3
"""Raised whenever this package would make other columns or tokens of the same data."""

COLUMNS: Final = ("input_ids", "labels", "task_types", "length")
MARKS: Final = ("cut", "special")
"""Whether a sample was cut, and holds a special token; for the report."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataReport:
    """What became of the samples of a data set; of a stream, only what reading its files tells.

    Attributes:
        samples: Samples read; 0 where a stream has not been counted.
        kept: Samples in the result.
        task_types: Kept samples of each task type.
        max_seq_length: Most tokens of a sample.
        cut: Kept samples whose end was cut off at max_seq_length.
        dropped: Samples of which no token to learn is left at max_seq_length.
        special: Kept samples whose own words became a special token.
        tokens: Tokens of the kept samples, prompts included.
        max_token_id: Largest token id; -1 for a stream.
        longest: Tokens of the longest sample.
    """

    samples: int
    kept: int
    task_types: dict[int, int]
    max_seq_length: int
    cut: int = 0
    dropped: int = 0
    special: int = 0
    tokens: int = 0
    max_token_id: int = -1
    longest: int = 0

    def __add__(self, other: DataReport) -> DataReport:
        sums = ("samples", "kept", "cut", "dropped", "special", "tokens")
        both = {name: getattr(self, name) + getattr(other, name) for name in sums}
        both |= {name: max(getattr(self, name), getattr(other, name)) for name in ("max_token_id", "longest")}
        types = Counter(self.task_types) + Counter(other.task_types)
        return replace(self, **both, task_types=dict(sorted(types.items())))

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


class Loaded(NamedTuple):
    """A `Dataset` or `IterableDataset` of token ids, its report, and a hash of the source's content."""

    dataset: Any
    report: DataReport
    content: str


@dataclass
class Encoder:
    """Makes token ids of values, for `map` of the `datasets` library; a stream skips and counts faulty samples."""

    reader: SampleReader
    template: PromptTemplate
    max_seq_length: int
    streaming: bool = False
    skipped: int = 0

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Encodes a batch; samples with no token left to learn are left out."""
        values = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        rows = []
        for value, made in zip(values, self.encode(values), strict=True):
            if isinstance(made, list):
                if not self.streaming:
                    raise ValueError(made[0])  # a second reading finds its place, and further faults
                self.skipped += 1
                logger.warning("sample skipped (%d so far)%s (it is %s)", self.skipped, made[0], seen(value))
                continue
            sample, encoded = made
            if short := encoded.truncated(self.max_seq_length):
                marks = (len(encoded.input_ids) > self.max_seq_length, encoded.special)
                rows.append((short.input_ids, short.labels, sample.task_type, len(short.input_ids), *marks))
        return {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS + MARKS)}

    def encode(self, values: Sequence[object]) -> list[tuple[Sample, Encoded] | list[str]]:
        """Encodes values; gives for each the sample and its tokens, or what is wrong with it."""
        samples = [self.reader(value) for value in values]
        encoded = iter(self.template.encode([one.messages for one in samples if isinstance(one, Sample)]))
        made: list[tuple[Sample, Encoded] | list[str]] = []
        for sample in samples:
            if isinstance(sample, list):
                made.append(sample)
            else:
                one = next(encoded)
                made.append([f": {one}"] if isinstance(one, TemplateError) else (sample, one))
        return made


@dataclass(frozen=True)
class Tokeniser:
    """How data sets are tokenised; the attributes are the arguments of `tokenise_dataset`."""

    tokenizer: PreTrainedTokenizerBase
    template: str = "release"
    max_seq_length: int = 1024
    task_types: Collection[int] | None = None
    num_proc: int = 1
    cache_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_seq_length", 2), ("num_proc", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {name}={getattr(self, name)}. Raise it.")

    def recipe(self) -> dict[str, Any]:
        """What decides the tokens of a sample."""
        types = None if self.task_types is None else sorted(set(self.task_types))
        numbers = {"format_version": FORMAT_VERSION, "max_seq_length": self.max_seq_length, "task_types": types}
        return {"tokenizer": tokenizer_hash(self.tokenizer), "template": self.template, **numbers}

    def store(self, source: DataSource) -> Loaded:
        """Tokenises a data set, or finds the result of having done so."""
        import datasets
        from filelock import FileLock

        encoder = self._encoder(source)  # refuses a template that does not suit, before any work
        raw = None if source.local else reading.load_hub(source)
        content = source.content_hash() if raw is None else str(raw._fingerprint)
        dated = self.template == "chat" and "strftime_now" in str(self.tokenizer.chat_template)
        day = str(datetime.now(timezone.utc).date()) if dated else None
        cache = Path(self.cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "loramoe")).expanduser()
        folder = cache / hash_of({**self.recipe(), "day": day, **source.recipe(content)})
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    self._build(source, raw, encoder, folder)
        fields = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        types = {int(key): number for key, number in fields.pop("task_types").items()}
        parts = [datasets.Dataset.from_file(str(file)) for file in sorted(folder.glob("*.arrow"))]
        dataset = datasets.concatenate_datasets(parts).select_columns(list(COLUMNS))
        return Loaded(dataset, DataReport(**fields, task_types=types), content)

    def stream(self, source: DataSource) -> Loaded:
        """Tokenises a data set while it is read; samples of files are checked and counted before."""
        encoder, types = self._encoder(source, streaming=True), Counter[int]()
        if source.local:
            content, files, most = source.content_hash(), data_files(source.path), source.max_samples
            types.update(row["task_type"] for row in reading.conversations(files, encoder.reader, most))
            raw = reading.by_python(files, encoder.reader, most, streaming=True)
            encoder.reader = SampleReader()
        else:
            raw, content = reading.load_hub(source, streaming=True), f"{source.path} {source.revision}"
            raw = raw.take(source.max_samples) if source.max_samples else raw
        columns = raw.column_names or list(next(iter(raw)))
        options = {"batched": True, "batch_size": 64, "remove_columns": columns, "features": _features()}
        report = DataReport(types.total(), types.total(), dict(sorted(types.items())), self.max_seq_length)
        return Loaded(raw.map(encoder, **options).select_columns(list(COLUMNS)), report, content)

    def _encoder(self, source: DataSource, streaming: bool = False) -> Encoder:
        template = get_template(self.template, self.tokenizer)
        return Encoder(source.reader(self.task_types), template, self.max_seq_length, streaming)

    def _build(self, source: DataSource, raw: Any, encoder: Encoder, folder: Path) -> None:
        """Tokenises into a folder beside, which is renamed when it is complete."""
        building = folder.with_name(f"{folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            report = self._tokenise(source, raw, encoder, building)
            if not report.kept:
                limit = f"max_seq_length={self.max_seq_length}"
                raise DatasetError(f"{source.path}: none of the {report.samples:,} samples fits {limit}. Raise it.")
            (building / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")
            shutil.rmtree(building / "raw", ignore_errors=True)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _tokenise(self, source: DataSource, raw: Any, encoder: Encoder, building: Path) -> DataReport:
        """Tokenises what the library reads; if that fails, checks the samples, and tokenises what Python reads."""
        from datasets import logging

        level = logging.get_verbosity()
        files, cache = data_files(source.path) if raw is None else [], str(building / "raw")
        ways: list[tuple[Callable[[], Any], SampleReader]] = [(lambda: raw, encoder.reader)]
        if raw is None:
            most = source.max_samples
            ways = [(lambda: reading.by_python(files, encoder.reader, most, cache), SampleReader())]
            # Of .json the library reads the whole file, and in .csv it guesses types.
            if {kind_of(file)[0] for file in files} in ({".jsonl"}, {".parquet"}):
                ways.insert(0, (lambda: reading.by_library(files, encoder.reader, cache), encoder.reader))
        for read, reader in ways:
            try:
                logging.set_verbosity(logging.CRITICAL)  # the second reading explains errors better
                return self._map(read(), replace(encoder, reader=reader), source.max_samples, building)
            except Exception as error:
                _raise_if_of_machine(error)
                failure = error
            finally:
                logging.set_verbosity(level)
            values = reading.locate(files) if raw is None else reading.located(f"{source.path}, row", raw)
            for _ in reading.checked(islice(values, source.max_samples), lambda value: encoder.encode([value])[0]):
                pass  # raises, if it finds a fault
            for left in building.glob("*.arrow"):
                left.unlink()
        raise failure

    def _map(self, dataset: Any, encoder: Encoder, most: int | None, building: Path) -> DataReport:
        some = dataset if most is None else dataset.select(range(min(len(dataset), most)))
        made = some.map(
            encoder,
            batched=True,
            remove_columns=some.column_names,
            features=_features(),
            num_proc=self.num_proc if self.num_proc > 1 else None,
            cache_file_name=str(building / "tokens.arrow"),
            new_fingerprint=building.stem[:48],
            desc="Tokenising",
        )
        return _report(made.data.table, len(some), self.max_seq_length)


def _features() -> Any:
    from datasets import Features, Sequence, Value

    ids, flag = Sequence(Value("int32")), Value("bool")
    kinds = (ids, ids, Value("int64"), Value("int32"), flag, flag)
    return Features(dict(zip(COLUMNS + MARKS, kinds, strict=True)))


def _report(table: Any, samples: int, max_seq_length: int) -> DataReport:
    import pyarrow.compute as pc

    types = {one["values"]: one["counts"] for one in pc.value_counts(table["task_types"]).to_pylist()}
    return DataReport(
        samples,
        len(table),
        dict(sorted(types.items())),
        max_seq_length,
        **{name: pc.sum(table[name]).as_py() or 0 for name in MARKS},
        dropped=samples - len(table),
        tokens=pc.sum(table["length"]).as_py() or 0,
        max_token_id=pc.max(pc.list_flatten(table["input_ids"])).as_py() or 0,
        longest=pc.max(table["length"]).as_py() or 0,
    )


def _raise_if_of_machine(error: BaseException) -> None:
    """Raises an error that no other data would prevent: a full disk, missing permissions, a killed process."""
    if "abruptly died" in str(error):
        raise RuntimeError(
            "a process that tokenises was killed, often because memory ran out. Start again, with fewer processes."
        ) from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            raise cause
        cause = cause.__cause__
