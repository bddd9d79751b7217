"""What tests of tokenising look at in the cache below their temporary folder."""

from __future__ import annotations

from pathlib import Path


def finished(tmp_path: Path) -> list[Path]:
    return sorted(entry for entry in (tmp_path / "cache").iterdir() if not entry.suffix)


def unfinished(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.building"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def mtime(file: Path) -> int:
    return file.stat().st_mtime_ns
