"""What values of flags have in common: lists with commas, least numbers, packages that are installed where wanted."""

from __future__ import annotations

import argparse
import importlib.util
import math


def comma_list(text: str | None) -> list[str] | None:
    """Splits "a, b" into ["a", "b"]; None where the text is None or empty."""
    if text is None or not text.strip():
        return None
    return [item.strip() for item in text.split(",") if item.strip()]


def positive(text: str) -> int:
    """Reads a flag that counts something, as the `type` of argparse's flags.

    Args:
        text: The flag's value.

    Returns:
        The whole number.

    Raises:
        argparse.ArgumentTypeError: If it is none, or less than 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}. Raise it.")
    return int(text)


def not_negative(text: str) -> float:
    """Reads a flag that measures something, as the `type` of argparse's flags.

    Args:
        text: The flag's value.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is below 0, infinite or not a number.
        ValueError: If it is something else; argparse says so.
    """
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}. Correct it.")
    return float(text)


def require(module: str, flag: str, package: str | None = None) -> None:
    """Refuses a flag whose package is not installed.

    Args:
        module: What is imported.
        flag: The flag that asks for it, with its value.
        package: What pip installs, where that has another name.

    Raises:
        ValueError: If there is no such module.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"{flag} needs {module}, which is not installed. Run pip install {package or module}, or leave it out."
        )
