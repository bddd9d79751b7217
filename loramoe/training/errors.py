"""Whose mistake it is: what the user can mend is told in one line, everything else keeps its traceback."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator

from safetensors import SafetensorError

from loramoe.data import DatasetError

# What reading an adapter's folder raises where a file of it is damaged, missing, or of another model or method.
ADAPTER_ERRORS = (ValueError, OSError, RuntimeError, KeyError, TypeError, SafetensorError, pickle.UnpicklingError)


class UsageError(ValueError):
    """Flags, or what they name, cannot be used as they are; the message says what was seen and the fix."""


@contextlib.contextmanager
def as_usage_error(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Turns errors of a library into UsageError; for calls that raise them where their input is wrong, and no others.

    Args:
        kinds: The errors that this call raises for wrong input.
        about: What to say before the error's own message.

    Raises:
        UsageError: In place of such an error, with its message on one line.
    """
    try:
        yield
    except (UsageError, DatasetError):
        raise
    except kinds as error:
        raise UsageError(" ".join(f"{about} {error}".split())) from error


class SaveError(OSError):
    """A checkpoint cannot be written; the message says why, what is left, and how to go on."""
