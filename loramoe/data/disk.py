"""What stands in a file after the power has failed: only what was brought to the disk before, names included."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Has the operating system bring a file, or the names in a folder, to the disk.

    Without it, a power cut may undo writes and renames in any order.

    Args:
        path: The file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
