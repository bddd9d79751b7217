"""Writing so that a file or folder is there whole or not at all, and knowing later whether it still is.

A process may be killed, a disk fill up, and the power fail at any moment. So nothing is written where it would be read:
it is filled under a hidden name, forced to disk, and moved into place; and what several processes write together is
sealed last, with the size and the hash of each of its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from loramoe.data.disk import sync

SEAL: Final = "complete"
"""Name of the file that `seal` writes into a folder."""

CHUNK_BYTES: Final = 2**20


def write_json(file: Path, values: Any) -> None:
    """Writes values as JSON, as `write_text` does."""
    write_text(file, json.dumps(values, indent=1, sort_keys=True) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a file so that it holds all of a text or, after a power cut, what it held before.

    Args:
        file: The file. Where several write it at once, it holds what one of them wrote.
        text: What will be in it.
    """
    # A name of this call alone: the process's number would not do, as containers that share a disk may have the same.
    draft = file.with_name(_draft_name(file.name, secrets.token_hex(8)))
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(file.parent)


def _draft_name(name: str, which: str) -> str:
    return f".{name}.{which}.incomplete"


@contextlib.contextmanager
def filled_then_moved(
    folder: Path, writer: bool, draft_name: str = ".incomplete", last: str | None = None
) -> Iterator[Path]:
    """Fills a hidden folder and moves its entries into place, one by one, once all are whole and on disk.

    Args:
        folder: Where the entries go; entries of other names stay.
        writer: Whether this process is the one that writes; the others only take part in what saving gathers.
        draft_name: Name of the hidden folder; two that write into one folder at once need two.
        last: Name of the entry that is moved last: where it is, the others are.

    Yields:
        The hidden folder, of the same name in all processes.
    """
    draft = folder / draft_name
    if writer:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    try:
        yield draft
    except BaseException:
        if writer:
            shutil.rmtree(draft, ignore_errors=True)
        raise
    if not writer:
        return
    sync_all(draft)
    for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == last):
        _replace(entry, folder / entry.name)
    draft.rmdir()
    sync(folder)


def _replace(new: Path, target: Path) -> None:
    if target.is_dir():  # a folder cannot be replaced in one step: the old one steps aside first
        aside = target.with_name(f".{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
        os.replace(new, target)
        shutil.rmtree(aside)
    else:
        os.replace(new, target)


def sync_all(folder: Path) -> None:
    """`sync` of everything below a folder, and of the folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def seal(folder: Path) -> None:
    """Forces a folder to disk, and writes down the size and SHA-256 of every file in it.

    Args:
        folder: A folder that nobody writes to any more.
    """
    sync_all(folder)
    files = {str(file.relative_to(folder)): _fingerprint(file) for file in _files(folder)}
    write_json(folder / SEAL, files)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that should be sealed.

    Args:
        folder: The folder.

    Returns:
        What a reader should know, such as `optimizer.pt has 100 bytes, 4096 were written`; None if every file is as it
        was when it was sealed.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        wanted = {str(name): (int(size), str(digest)) for name, (size, digest) in sealed.items()}
    except FileNotFoundError:
        return "it was cut off before its end"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"its {SEAL} cannot be read"
    return next((fault for name, is_as in wanted.items() if (fault := _fault(folder, name, *is_as))), None)


def _fault(folder: Path, name: str, size: int, digest: str) -> str | None:
    file = folder / name
    try:
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, {size:,} were written"
        return None if _fingerprint(file)[1] == digest else f"{name} has other bytes than were written"
    except OSError as error:  # a bad block, or no permission
        return f"{name} cannot be read ({error.strerror})"


def _files(folder: Path) -> list[Path]:
    # A draft of the seal is left where a process was killed while it sealed.
    seals = {folder / SEAL, *folder.glob(_draft_name(SEAL, "*"))}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in seals)


def _fingerprint(file: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
        return stream.tell(), digest.hexdigest()
