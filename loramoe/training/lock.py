"""One run at a time in a folder: of two that write the same checkpoints, neither could ever be resumed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

from filelock import FileLock, Timeout

LOCK: Final = ".lock"


class RunLock:
    """Holds the folder of a run until the run ends, however it ends: the system lets go of what a dead process held.

    Args:
        folder: The folder.
        seconds: How long to wait for an earlier run that is just ending.
    """

    def __init__(self, folder: Path, seconds: float = 10.0) -> None:
        self.folder, self.seconds = folder, seconds
        self._lock = FileLock(folder / LOCK)

    @property
    def held(self) -> bool:
        """Whether this process holds the folder."""
        return bool(self._lock.is_locked)

    def take(self) -> None:
        """Takes the folder, which is made if there is none.

        Raises:
            FileExistsError: If another run holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=self.seconds)
        except Timeout:
            raise FileExistsError(
                f"{self.folder} is in use by another run. Wait for its end or stop it, or set another --output_dir. If "
                f"there is none, and a machine of it has crashed, remove {self.folder / LOCK}."
            ) from None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()
