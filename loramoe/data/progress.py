"""A progress bar for reading files: how far, how many rows a second, how long it will still take.

Time left follows from bytes, because nobody knows the number of rows before they are read. The bar is the one of the
`datasets` library, so that `datasets.disable_progress_bars()` silences it, and appears on long work only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

SHOWN_AFTER_SECONDS: Final = 3
ROWS_PER_UPDATE: Final = 1000


class RowProgress:
    """The bar; called for each row that was read.

    Args:
        files: The files that will be read.
        description: What is being done.
    """

    def __init__(self, files: Sequence[Path], description: str) -> None:
        from datasets.utils import tqdm

        size = sum(file.stat().st_size for file in files if file.is_file())  # one that is none fails when it is opened
        self._bar = tqdm(total=size, desc=description, unit="B", unit_scale=True, delay=SHOWN_AFTER_SECONDS)
        self._rows = self._position = 0

    def __enter__(self) -> RowProgress:
        return self

    def __call__(self, position: int) -> None:
        """Counts a row.

        Args:
            position: Bytes from the beginning of the first file to the end of the row.
        """
        self._rows += 1
        self._position = position
        if self._rows % ROWS_PER_UPDATE == 0:
            self._update()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update()
        self._bar.close()

    def _update(self) -> None:
        elapsed = self._bar.format_dict["elapsed"]
        rate = f", {self._rows / elapsed:,.0f} rows/s" if elapsed else ""
        self._bar.set_postfix_str(f"{self._rows:,} rows{rate}", refresh=False)
        self._bar.update(self._position - self._bar.n)
