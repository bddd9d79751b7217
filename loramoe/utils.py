"""What every package may use: errors for users, files written whole or not at all, values of flags, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import pickle
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from safetensors import SafetensorError

# Exit codes: a run that cannot go on; a run that a signal stopped and that has saved: the same command resumes it.
FAILED: Final = 1
TRY_AGAIN: Final = 75  # EX_TEMPFAIL of sysexits.h
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)  # schedulers send them before the time is up

# What reading an adapter's folder raises if a file is damaged, missing, or of another model or method.
ADAPTER_ERRORS = (ValueError, OSError, RuntimeError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError)


class UsageError(ValueError):
    """Flags, or what they name, cannot be used as they are; the message names the value and the fix."""


class SaveError(OSError):
    """A file cannot be written; the message says why, what is left, and how to go on."""


# Errors that users can fix: commands print them in one line, without a traceback.
USER_ERRORS: Final = (UsageError, SaveError, FileExistsError, FileNotFoundError, PermissionError)


@contextlib.contextmanager
def as_usage_error(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Turns errors that a library raises for wrong input into UsageError: `about`, and the error's message."""
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(" ".join(f"{about} {error}".split())) from error


class _Yaml(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    "-+0123456789.",
)


def read_yaml(text: str) -> Any:
    """Reads YAML as version 1.2 has it: `2e-4` is a number and `no` a word, where PyYAML has a word and false."""
    return yaml.load(text, _Yaml)  # a SafeLoader


def write_json(file: Path, values: Any) -> None:
    """Writes values as JSON, atomically."""
    write_text(file, json.dumps(values, indent=1, sort_keys=True) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a file atomically: after a crash, or several writers at once, it holds one text, whole."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}.incomplete")
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        os.replace(draft, file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(file.parent)


@contextlib.contextmanager
def atomic_save_dir(folder: Path, writer: bool = True, hidden: str = ".incomplete", last: str = "") -> Iterator[Path]:
    """Fills a hidden folder, then moves its entries into place one by one."""
    draft = folder / hidden
    if not writer:
        yield draft
        return
    with _whole(draft):
        yield draft
    for entry in sorted(draft.iterdir(), key=lambda entry: entry.name == last):
        _replace(entry, folder / entry.name)
    draft.rmdir()
    sync(folder)


@contextlib.contextmanager
def replace_dir(target: Path) -> Iterator[Path]:
    """Fills a hidden folder beside the target, which takes the target's place once it is whole and on disk."""
    target = target.resolve()  # a link to a folder cannot be replaced by a folder
    draft = target.with_name(f".{target.name}.incomplete")
    with _whole(draft):
        yield draft
    _replace(draft, target)
    sync(target.parent)


@contextlib.contextmanager
def _whole(draft: Path) -> Iterator[None]:
    """Makes a folder, which is forced to disk once it is filled, and removed if that fails."""
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield
        sync_all(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _replace(new: Path, target: Path) -> None:
    if not target.is_dir():
        os.replace(new, target)
        return
    aside = target.with_name(f".{target.name}.old")  # a folder cannot be replaced in one step
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(target, aside)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside)


def check_output_dir(folder: Path, overwrite: bool, report: str) -> None:
    """Refuses an output folder that is in use, before any work is done.

    `report` is the JSON file of an earlier result whose `files` lists every file of it; nothing else is ever replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output_dir={folder} is a file. Choose another name.")
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    try:
        written = set(json.loads((folder / report).read_text(encoding="utf-8"))["files"]) if entries else set()
    except (OSError, ValueError, LookupError, TypeError):
        written = set()
    if others := sorted(entries - written):
        raise UsageError(f"output_dir={folder} holds files of something else, such as {others[0]}. Choose another.")
    if entries and not overwrite:
        raise UsageError(f"output_dir={folder} holds an earlier result. Choose another folder, or set --overwrite.")


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk: a power cut may otherwise undo writes in any order."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Forces a folder and everything in it to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def comma_list(text: str | None) -> list[str] | None:
    """Splits "a, b" into ["a", "b"]; None if the text is None or empty."""
    return [item.strip() for item in text.split(",") if item.strip()] if text and text.strip() else None


def positive(text: str) -> int:
    """Type of an argparse flag: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}. Raise it.")
    return int(text)


def not_negative(text: str) -> float:
    """Type of an argparse flag: a finite number of at least 0."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}. Correct it.")
    return float(text)


def require(module: str, flag: str, package: str | None = None) -> None:
    """Raises UsageError for a flag whose module is not installed; pip installs it as `package`."""
    if importlib.util.find_spec(module) is None:
        fix = f"Run pip install {package or module}, or leave it out."
        raise UsageError(f"{flag} needs {module}, which is not installed. {fix}")


def hub_name(model: str) -> str | None:
    """The name of a model or adapter on the Hugging Face hub; None for a folder, and for what cannot be a name."""
    return model if re.fullmatch(r"([\w.-]+/)?[\w.-]+", model) and not Path(model).exists() else None


def public_name(model: str) -> str:
    """The name of a model or adapter where others read it: its name on the hub, or its folder's without the path."""
    return hub_name(model) or Path(model).resolve().name
