"""From rows to token ids on disk, part by part, so that a broken run loses one part and not all.

Rows are tokenised in chunks. Each becomes a shard: a file of one Arrow record batch, and beside it what became of its
rows. Both are written under hidden names, brought to the disk and then renamed, the report last: a shard that has a
report is whole. Where the chunks begin and end depends on the rows alone; so whoever comes back to a folder that was
left unfinished finds shards that are, byte for byte, what it would write itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loramoe.data import report as reports
from loramoe.data.progress import RowProgress
from loramoe.data.read import Located, locate_rows
from loramoe.data.report import TokeniseReport
from loramoe.data.row import Row
from loramoe.data.templates import PromptTemplate, TemplateError, conversation
from loramoe.data.workers import in_processes
from loramoe.utils import sync

SHARD_ROWS: Final = 10_000
SHARD_BYTES: Final = 2**24
"""A shard ends at whichever comes first, so that rows of many pages do not need more memory than short ones."""

BATCH_ROWS: Final = 1_000
"""Rows that are encoded at once: as ids of Python, tokens take ten times the memory that they have in a shard."""

WRITE_BYTES: Final = 2**16


def write_shards(
    files: Sequence[Path],
    folder: Path,
    encoder: PromptTemplate,
    *,
    max_seq_length: int,
    task_types: Collection[int] | None,
    num_proc: int,
) -> TokeniseReport:
    """Tokenises the rows of files into a folder of shards; those that are there already are passed over.

    Args:
        files: The files, as `data_files` lists them.
        folder: An empty folder, or one that an earlier call with the same arguments left unfinished.
        encoder: The prompt template.
        max_seq_length: Most tokens of a row.
        task_types: The task types that the experts have; None accepts any integer.
        num_proc: Processes that tokenise.

    Returns:
        What became of all rows.

    Raises:
        DatasetError: If rows are broken, see `iter_rows`. What is in the folder then is worth nothing.
        WorkerDiedError: If a process ends before its work is done.
        ValueError: If the template cannot encode a row.
    """
    writer = ShardWriter(folder, encoder, max_seq_length)
    with RowProgress(files, "Tokenising") as progress:
        chunks = enumerate(_chunks(locate_rows(files, task_types, progress)))
        results = map(writer, chunks) if num_proc == 1 else in_processes(writer, chunks, num_proc)
        return reports.total(results, max_seq_length)


def shard_files(folder: Path) -> list[Path]:
    """Lists the shards of a folder in the order of their rows, and not what `datasets` caches beside them."""
    return sorted(file for file in folder.glob("[!.]*.arrow") if not file.name.startswith("cache-"))


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Writes a file that, whenever the power fails, either is not there or is whole.

    Args:
        file: The file.
        content: What will be in it.
    """
    # Of this process alone: a worker of a run that was killed may still be writing the same file, with the same bytes.
    hidden = file.with_name(f".{file.name}.{os.getpid()}")
    with hidden.open("wb") as stream:
        # In pieces: Linux caches what was written at once in large pages, and maps them whole when a byte is looked at.
        for start in range(0, len(content), WRITE_BYTES):
            stream.write(content[start : start + WRITE_BYTES])
        stream.flush()
        os.fsync(stream.fileno())
    hidden.rename(file)
    sync(file.parent)


@dataclass(frozen=True)
class ShardWriter:
    """Makes shards.

    Attributes:
        folder: Where they are written.
        encoder: The prompt template.
        max_seq_length: Most tokens of a row.
    """

    folder: Path
    encoder: PromptTemplate
    max_seq_length: int

    def __call__(self, chunk: tuple[int, Sequence[Row]]) -> TokeniseReport:
        """Writes the shard of a chunk, unless it is there.

        Args:
            chunk: Its number, from 0, and its rows.

        Returns:
            What became of the rows.
        """
        number, rows = chunk
        told = self.folder / f"{number:06}.json"
        if told.exists() and told.with_suffix(".arrow").exists():
            return reports.load(told)
        content, report = self._tokenise(rows)
        write_whole(told.with_suffix(".arrow"), content)
        write_whole(told, reports.dumps(report))
        return report

    def _tokenise(self, rows: Sequence[Row]) -> tuple[memoryview, TokeniseReport]:
        import pyarrow as pa

        ids = pa.list_(pa.int32())
        schema = pa.schema({"input_ids": ids, "labels": ids, "task_types": pa.int64()})
        batches, parts = [], []
        for start in range(0, len(rows), BATCH_ROWS):
            columns, report = tokenise_rows(rows[start : start + BATCH_ROWS], self.encoder, self.max_seq_length)
            batches.append(pa.record_batch(columns, schema=schema))
            parts.append(report)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            # One large batch: to open a file, the head of every batch is read, and with it the pages around are mapped.
            stream.write_table(pa.Table.from_batches(batches).combine_chunks())
        return memoryview(sink.getvalue()), reports.total(parts, self.max_seq_length)


def tokenise_rows(
    rows: Sequence[Row], encoder: PromptTemplate, max_seq_length: int
) -> tuple[list[list[list[int]] | list[int]], TokeniseReport]:
    """Tokenises rows, cuts what is too long and drops what has no answer left.

    Args:
        rows: The rows.
        encoder: The prompt template.
        max_seq_length: Most tokens of a row.

    Returns:
        The columns `input_ids`, `labels` and `task_types` of the kept rows, and what became of all.
    """
    codes = encoder.encode([conversation(row["instruction"], row["input"], row["output"]) for row in rows])
    encoded = [code for code in codes if not isinstance(code, TemplateError)]
    if len(encoded) < len(codes):
        raise next(code for code in codes if isinstance(code, TemplateError))
    samples = [code.truncated(max_seq_length) for code in encoded]
    kept = [index for index, sample in enumerate(samples) if sample is not None]
    input_ids = [sample.input_ids for sample in samples if sample is not None]
    labels = [sample.labels for sample in samples if sample is not None]
    task_types = [rows[index]["task_type"] for index in kept]
    report = TokeniseReport(
        rows=len(rows),
        kept=len(kept),
        cut=sum(len(encoded[index].input_ids) > max_seq_length for index in kept),
        dropped=len(rows) - len(kept),
        special=sum(encoded[index].special for index in kept),
        tokens=sum(map(len, input_ids)),
        task_types=dict(Counter(task_types)),
        max_seq_length=max_seq_length,
    )
    return [input_ids, labels, task_types], report


def _chunks(rows: Iterable[Located]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for located in rows:
        chunk.append(located.row)
        size += located.length
        if len(chunk) == SHARD_ROWS or size >= SHARD_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
