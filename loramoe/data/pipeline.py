"""From one data set to token ids: read, checked, tokenised and cached by the `datasets` library, or streamed.

The library reads and maps in batches, memory-mapped. Where it fails, plain Python reads again (`read`) and names file,
line and field of what is wrong. If nothing is, as with a field of mixed types that no sample needs, the samples that
Python reads are taken. A finished data set is a folder whose name is a hash of all that decides its tokens.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loramoe.data.encode import (
    DataReport,
    Encoder,
    FaultyError,
    count,
    hash_of,
    quiet,
    raise_if_of_machine,
    token_features,
    tokenizer_hash,
)
from loramoe.data.formats import SampleReader
from loramoe.data.read import Located, checked, conversation_features, conversations, locate
from loramoe.data.sources import DatasetError, DataSource, data_files, file_hash, kind_of
from loramoe.data.templates import get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION: Final = 3
"""Raised whenever this package would make other columns or tokens of the same data."""

REPORT_FILE: Final = "report.json"
_LIBRARY_READS: Final = {".jsonl": "json", ".parquet": "parquet"}
"""Of other kinds the library reads the whole file (.json) or guesses types (.csv)."""


class Loaded(NamedTuple):
    """A data set of token ids (a `Dataset` or an `IterableDataset`), its report, and a hash of the source's content."""

    dataset: Any
    report: DataReport
    content: str


@dataclass(frozen=True)
class Tokeniser:
    """How data sets are tokenised.

    Attributes:
        tokenizer: The model's tokenizer.
        template: Name of the prompt template.
        max_seq_length: Most tokens of a sample, at least 2.
        task_types: The types that the experts have; None accepts any.
        num_proc: Processes that tokenise.
        cache_dir: Folder of finished data sets. Default: `loramoe` in the cache of the `datasets` library.
    """

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
        return {
            "format_version": FORMAT_VERSION,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "template": self.template,
            "max_seq_length": self.max_seq_length,
            "task_types": None if self.task_types is None else sorted(set(self.task_types)),
        }

    def store(self, source: DataSource) -> Loaded:
        """Tokenises a data set, or finds the result of having done so."""
        import datasets
        from filelock import FileLock

        encoder = self._encoder(source)  # refuses a template that does not suit, before any work
        raw = None if source.local else load_hub(source)
        content = _content(source) if raw is None else str(raw._fingerprint)
        dated = self.template == "chat" and "strftime_now" in str(self.tokenizer.chat_template)
        day = datetime.now(timezone.utc).date().isoformat() if dated else None
        cache = (
            Path(self.cache_dir).expanduser() if self.cache_dir else Path(datasets.config.HF_DATASETS_CACHE, "loramoe")
        )
        folder = cache / hash_of({**self.recipe(), "day": day, **describe(source, content)})
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    self._build(source, raw, encoder, folder)
        fields = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        types = {int(key): number for key, number in fields.pop("task_types").items()}
        dataset = _open_stored(folder).select_columns(list(token_features()))
        return Loaded(dataset, DataReport(**fields, task_types=types), content)

    def stream(self, source: DataSource) -> Loaded:
        """Tokenises a data set while it is read; samples of files are checked and counted before."""
        from datasets import IterableDataset

        encoder, types = self._encoder(source, streaming=True), Counter[int]()
        if source.local:
            content, files = _content(source), data_files(source.path)
            values = islice(locate(files), source.max_samples)
            types.update(sample.task_type for _, sample in checked(values, encoder.reader))
            arguments = {"files": files, "reader": encoder.reader, "most": source.max_samples}
            raw = IterableDataset.from_generator(conversations, gen_kwargs=arguments, features=conversation_features())
            encoder = replace(encoder, reader=SampleReader())
        else:
            raw, content = load_hub(source, streaming=True), f"{source.path} {source.revision}"
            raw = raw.take(source.max_samples) if source.max_samples else raw
        number = sum(types.values())
        report = DataReport(number, number, 0, 0, 0, 0, -1, 0, dict(sorted(types.items())), self.max_seq_length)
        return Loaded(encode_stream(raw, encoder), report, content)

    def _encoder(self, source: DataSource, streaming: bool = False) -> Encoder:
        template = get_template(self.template, self.tokenizer)
        return Encoder(source.reader(self.task_types), template, self.max_seq_length, streaming)

    def _build(self, source: DataSource, raw: Any, encoder: Encoder, folder: Path) -> None:
        """Tokenises into a folder beside, which is renamed when it is complete."""
        building = folder.with_name(f"{folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            samples = self._tokenise(source, raw, encoder, building)
            report = count(_open_stored(building), samples, self.max_seq_length)
            if not report.kept:
                raise DatasetError(
                    f"{source.path}: none of the {samples:,} samples has room for an answer within "
                    f"max_seq_length={self.max_seq_length} tokens. Raise max_seq_length."
                )
            (building / REPORT_FILE).write_text(json.dumps(asdict(report)), encoding="utf-8")
            shutil.rmtree(building / "raw", ignore_errors=True)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _tokenise(self, source: DataSource, raw: Any, encoder: Encoder, building: Path) -> int:
        """Writes the token ids of a data set; returns the number of samples read."""
        files, cache = data_files(source.path) if raw is None else [], str(building / "raw")
        try:
            with quiet():
                parts = _read_parts(files, source, encoder.reader, cache) if raw is None else [raw]
            return self._map(parts, encoder, source.max_samples, building)
        except Exception as error:
            raise_if_of_machine(error)
            failure = error
        values = locate(files) if raw is None else _hub_values(source, raw)
        for _ in checked(islice(values, source.max_samples), encoder.check):
            pass  # raises, if it finds a fault
        if raw is not None:
            raise failure
        for left in building.glob("*.arrow"):
            left.unlink()
        part = _by_python(files, encoder.reader, source.max_samples, cache)
        return self._map([part], replace(encoder, reader=SampleReader()), None, building)

    def _map(self, parts: Sequence[Any], encoder: Encoder, most: int | None, building: Path) -> int:
        samples = 0
        for number, part in enumerate(parts):
            some = part if most is None else part.select(range(min(len(part), most - samples)))
            some.map(
                encoder,
                batched=True,
                remove_columns=some.column_names,
                features=token_features(marks=True),
                num_proc=self.num_proc if self.num_proc > 1 else None,
                cache_file_name=str(building / f"{number:05}.arrow"),
                new_fingerprint=f"{building.stem[:48]}{number}",
                desc="Tokenising",
            )
            samples += len(some)
        return samples


def load_hub(source: DataSource, streaming: bool = False) -> Any:
    """Loads a data set of the hub."""
    from datasets import load_dataset

    try:
        return load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision, streaming=streaming
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(
            f"data set {source.path} is no file or folder here (looked in {Path.cwd()}), and the hub does not give it "
            f"({type(error).__name__}: {reason}). Correct path, subset, split or revision, or check the network."
        ) from error


def encode_stream(raw: Any, encoder: Encoder) -> Any:
    """Encodes an `IterableDataset` while it is read."""
    columns = raw.column_names or list(next(iter(raw)))
    return raw.map(encoder, batched=True, batch_size=64, remove_columns=columns, features=token_features())


def describe(source: DataSource, content: str) -> dict[str, Any]:
    """What decides the samples of a data set, for a hash: never where it lies."""
    names = ("task_type", "default_task_type", "max_samples", "format")
    return {
        "content": content,
        "columns": dict(source.columns or {}),
        **{name: getattr(source, name) for name in names},
    }


def _content(source: DataSource) -> str:
    return hash_of([("".join(kind_of(file)), file_hash(file)) for file in data_files(source.path)])


def _open_stored(folder: Path) -> Any:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(file)) for file in sorted(folder.glob("*.arrow"))])


def _read_parts(files: list[Path], source: DataSource, reader: SampleReader, cache: str) -> list[Any]:
    """Reads files with the library where it streams them."""
    from datasets import load_dataset

    parts = []
    for kind, group in groupby(files, lambda file: kind_of(file)[0]):
        some = list(group)
        if kind not in _LIBRARY_READS:
            parts.append(_by_python(some, reader, source.max_samples, cache))
            continue
        names = [str(file.resolve()) for file in some]
        part = load_dataset(_LIBRARY_READS[kind], data_files=names, split="train", cache_dir=cache)
        used = reader.used_columns() & set(part.column_names)
        if any(
            "Json(" in repr(part.features[name]) for name in used
        ):  # of mixed types, which it would make of text too
            raise FaultyError
        parts.append(part.select_columns(sorted(used)))
    return parts


def _by_python(files: list[Path], reader: SampleReader, most: int | None, cache: str) -> Any:
    from datasets import Dataset

    arguments = {"files": files, "reader": reader, "most": most}
    return Dataset.from_generator(
        conversations, gen_kwargs=arguments, features=conversation_features(), cache_dir=cache
    )


def _hub_values(source: DataSource, raw: Any) -> Iterator[Located]:
    return (Located(f"{source.path}, row {number}", value) for number, value in enumerate(raw, start=1))
