"""The rows of a report: as many as are wanted, evenly spaced, and each of them once.

Where a stream meets a row whose prompt leaves no room for an answer, the next row stands in, so that a training has as
many rows as it counted. A report would then count that row twice; here such rows are left out, as they are where rows
are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from loramoe.data import DatasetError, StreamedRows


class ReportRows(IterableDataset[dict[str, Any]]):
    """Rows with room for an answer, one after the other.

    Args:
        rows: Tokenised rows, stored or streamed.
        most: Most of them to look at; None for all.

    Attributes:
        left_out: How many had no room, when they were last gone through.
    """

    def __init__(self, rows: Any, most: int | None = None) -> None:
        count = len(rows) if most is None else min(most, len(rows))
        self.left_out = 0
        self._rows = rows
        self._chosen = np.linspace(0, len(rows) - 1, count).round().astype(np.int64)

    def __len__(self) -> int:
        """Rows to look at: those that are left out are known afterwards."""
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Goes through the rows.

        Raises:
            DatasetError: If none has room.
        """
        self.left_out = 0
        for index in self._chosen.tolist():
            row = self._rows.own(index) if isinstance(self._rows, StreamedRows) else self._rows[index]
            if row is None:
                self.left_out += 1
            else:
                yield row
        if 0 < len(self) == self.left_out:
            raise DatasetError(
                f"none of the {len(self):,} rows has room for an answer: their prompts fill max_seq_length. Raise it."
            )

    def told(self) -> str:
        """How many rows were left out, in words; empty if none."""
        return f"rows left out, as the prompt fills max_seq_length: {self.left_out:,}" if self.left_out else ""
