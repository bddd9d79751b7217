"""What the values of flags have in common: lists with commas, and packages that are installed only where wanted."""

from __future__ import annotations

import importlib.util


def comma_list(text: str | None) -> list[str] | None:
    """Splits "a, b" into ["a", "b"]; None where the text is None or empty."""
    if text is None or not text.strip():
        return None
    return [item.strip() for item in text.split(",") if item.strip()]


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
