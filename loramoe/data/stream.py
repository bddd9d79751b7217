"""Rows that are tokenised when they are needed: training starts after one look at the files, and nothing is stored.

That look parses and checks every row, so that errors are told before the training as always, and keeps where each row
stands: 12 bytes a row. A row is then read again from its place. So the stream is no stream that could only be read from
its beginning, but a dataset with a length and indices: it is shuffled, divided among processes and resumed by the same
samplers, and to the same rows, as one that is stored.

One thing differs. Which rows have a prompt that leaves no room for an answer is not known before they are tokenised;
where they would have been left out, the next row that has room stands in.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from loramoe.data.progress import RowProgress
from loramoe.data.read import DatasetError, data_files, locate_rows, open_data_file
from loramoe.data.report import StreamReport
from loramoe.data.row import Row, to_row
from loramoe.data.templates import Encoded, Message, PromptTemplate, TemplateError, conversation, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def stream_dataset(
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "release",
    max_seq_length: int = 1024,
    task_types: Collection[int] | None = None,
) -> tuple[StreamedRows, StreamReport]:
    """Checks a file or folder of rows, and tokenises none of them yet.

    Args:
        path: A `.json` or `.jsonl` file, or a folder of such. The files must stay as they are while the rows are used.
        tokenizer: The model's tokenizer.
        template: Name of the prompt template, `"release"` or `"chat"`.
        max_seq_length: Most tokens of a row, at least 2. Longer answers are cut.
        task_types: The task types that the experts have; None accepts any integer.

    Returns:
        The rows, and what is known of them.

    Raises:
        DatasetError: If rows are broken (see `iter_rows`), or files change meanwhile.
        ImportError: If the `datasets` library, whose progress bar is shown, is not installed.
        ValueError: If an argument is out of range or the tokenizer does not suit the template.
    """
    if max_seq_length < 2:
        raise ValueError(f"max_seq_length must be at least 2; got max_seq_length={max_seq_length}. Raise it.")
    encoder = get_template(template, tokenizer)
    files = [DataFile.seen(file) for file in data_files(path)]
    begins = np.cumsum([0, *(file.size for file in files)])
    offsets, lengths, counts = array("q"), array("i"), Counter[int]()
    with RowProgress([file.path for file in files], "Reading") as progress:
        for number, offset, length, row in locate_rows([file.path for file in files], task_types, progress):
            offsets.append(int(begins[number]) + offset)
            lengths.append(length)
            counts[row["task_type"]] += 1
    for file in files:
        file.open().close()
    places = Places(np.frombuffer(offsets, dtype=np.int64), np.frombuffer(lengths, dtype=np.int32))
    report = StreamReport(len(offsets), dict(sorted(counts.items())), max_seq_length)
    return StreamedRows(files, places, encoder, max_seq_length), report


class Places(NamedTuple):
    """Where N rows stand.

    Attributes:
        offsets: Bytes from the beginning of the first file, all files being thought of as one, [N] int64.
        lengths: Bytes, [N] int32.
    """

    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]


class DataFile(NamedTuple):
    """A file as it was when its rows were checked.

    Attributes:
        path: Its path.
        size: Its size in bytes.
        modified: When it was last changed, in nanoseconds.
    """

    path: Path
    size: int
    modified: int

    @classmethod
    def seen(cls, path: Path) -> DataFile:
        """Notes how a file is now."""
        with open_data_file(path) as stream:
            status = os.fstat(stream.fileno())
        return cls(path, status.st_size, status.st_mtime_ns)

    def open(self) -> BinaryIO:
        """Opens the file.

        Raises:
            DatasetError: If it cannot be opened, or was changed.
        """
        stream = open_data_file(self.path)
        status = os.fstat(stream.fileno())
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            stream.close()
            raise DatasetError(
                f"{self.path}: the file has changed since its rows were checked. Start again, and leave the data as it "
                "is while a run streams it."
            )
        return stream


class StreamedRows(Dataset[dict[str, Any]]):
    """The rows of files, each read and tokenised when it is asked for; made by `stream_dataset`.

    Row i is `{"input_ids": list of ints, "labels": the same, -100 on the prompt, "task_types": int}`, as in the dataset
    of `tokenise_dataset`. Workers of a DataLoader may use it, however they are started.

    Args:
        files: The files.
        places: Where the rows stand in them.
        encoder: The prompt template.
        max_seq_length: Most tokens of a row.

    Attributes:
        replaced: How often the next row stood in for one whose prompt leaves no room for an answer; of this process.
    """

    def __init__(self, files: Sequence[DataFile], places: Places, encoder: PromptTemplate, max_seq_length: int) -> None:
        self.replaced = 0
        self._files = tuple(files)
        self._begins = np.cumsum([0, *(file.size for file in files)])
        self._places = places
        self._encoder = encoder
        self._max_seq_length = max_seq_length

    def __len__(self) -> int:
        return len(self._places.offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads several rows, which PyTorch asks for as a batch and a fast tokenizer encodes together.

        Args:
            indices: Their numbers, from 0.

        Returns:
            The rows.

        Raises:
            DatasetError: If a file was changed since its rows were checked, or no row has room for an answer.
            IndexError: If there is no row of a number.
        """
        rows = [self._read(index) for index in indices]
        encoded = self._encoder.encode([_conversation(row) for row in rows])
        return [
            self._sample(row, code) or self._stand_in(index)
            for index, row, code in zip(indices, rows, encoded, strict=True)
        ]

    def own(self, index: int) -> dict[str, Any] | None:
        """Reads a row without another standing in for it.

        Args:
            index: Its number.

        Returns:
            The row; None if its prompt leaves no room for an answer.

        Raises:
            DatasetError: If a file was changed since its rows were checked.
            IndexError: If there is no row of that number.
        """
        row = self._read(index)
        return self._sample(row, self._encoder.encode([_conversation(row)])[0])

    def select(self, indices: npt.NDArray[np.int64]) -> StreamedRows:
        """Makes a dataset of some of the rows.

        Args:
            indices: Their numbers.

        Returns:
            The rows in that order; only they stand in for each other.
        """
        places = Places(self._places.offsets[indices], self._places.lengths[indices])
        return StreamedRows(self._files, places, self._encoder, self._max_seq_length)

    def _sample(self, row: Row, encoded: Encoded | TemplateError) -> dict[str, Any] | None:
        if isinstance(encoded, TemplateError):
            raise encoded
        sample = encoded.truncated(self._max_seq_length)
        if sample is None:
            return None
        return {"input_ids": sample.input_ids, "labels": sample.labels, "task_types": row["task_type"]}

    def _stand_in(self, index: int) -> dict[str, Any]:
        """Returns the next row that has room for an answer, after the last one the first."""
        if self.replaced == 0:
            file, offset = self._place(index)
            logger.warning(
                "%s: the prompt of the row at byte %d fills max_seq_length=%d; the next row that has room stands in "
                "for it, and for all like it",
                *(self._files[file].path, offset, self._max_seq_length),
            )
        self.replaced += 1
        for step in range(1, len(self)):
            if sample := self.own((index + step) % len(self)):
                return sample
        raise DatasetError(
            f"none of the {len(self):,} rows has room for an answer, because every prompt alone has "
            f"max_seq_length={self._max_seq_length} tokens or more. Raise max_seq_length."
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a row's file and its offset there."""
        offset = int(self._places.offsets[index])
        file = int(np.searchsorted(self._begins, offset, side="right")) - 1
        return file, offset - int(self._begins[file])

    def _read(self, index: int) -> Row:
        file, offset = self._place(index)
        # Opened anew for each row: 0.02 ms beside the tokenising, and no handles to share with or hide from workers.
        with self._files[file].open() as stream:
            stream.seek(offset)
            content = stream.read(int(self._places.lengths[index]))
        return to_row(cast(dict[str, Any], json.loads(content)))


def _conversation(row: Row) -> list[Message]:
    return conversation(row["instruction"], row["input"], row["output"])
