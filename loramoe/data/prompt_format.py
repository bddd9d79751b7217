"""What shapes a prompt, kept beside an adapter, so that every tool lays out prompts as the training did."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from loramoe.data.templates import TEMPLATES

PROMPT_FILE: Final = "loramoe_prompt.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptFormat:
    """How the training laid out its samples.

    Attributes:
        template: Name of the prompt template.
        max_seq_length: Most tokens of a sample.
        type_names: What the task types stand for.
    """

    template: str = "release"
    max_seq_length: int = 1024
    type_names: dict[int, str] = field(default_factory=dict)


def save_prompt_format(folder: str | os.PathLike[str], prompt_format: PromptFormat) -> None:
    """Writes a prompt format into the folder of an adapter.

    Args:
        folder: The folder.
        prompt_format: What to write.
    """
    text = json.dumps(asdict(prompt_format), indent=2, ensure_ascii=False)
    (Path(folder) / PROMPT_FILE).write_text(text + "\n", encoding="utf-8")


def read_prompt_format(folder: str | os.PathLike[str]) -> PromptFormat | None:
    """Reads the prompt format of an adapter.

    Args:
        folder: The adapter's folder.

    Returns:
        The prompt format; None if the adapter was saved without one.

    Raises:
        ValueError: If the file is damaged.
    """
    file = Path(folder) / PROMPT_FILE
    if not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in saved.get("type_names", {}).items()}
        found = PromptFormat(saved["template"], int(saved["max_seq_length"]), names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}). Correct it, or remove it and pass --template.") from error
    if found.template not in TEMPLATES:
        raise ValueError(
            f"{file}: the template must be one of {', '.join(TEMPLATES)}; got {found.template!r}. Update loramoe."
        )
    return found


def choose_prompt_format(template: str | None, adapters: Sequence[str | os.PathLike[str]]) -> PromptFormat:
    """Chooses the prompt format for adapters, and warns if a template is wished for that differs from theirs.

    Args:
        template: The wish of the user; None takes the template of the adapters.
        adapters: Folders of adapters; of those without a prompt format nothing is known.

    Returns:
        The format of the first adapter that has one, with the template that was wished for; else "release".

    Raises:
        ValueError: If the adapters have different templates and none is wished for.
    """
    known = {os.fspath(folder): found for folder in adapters if (found := read_prompt_format(folder)) is not None}
    trained = {folder: found.template for folder, found in known.items()}
    if template is None and len(set(trained.values())) > 1:
        raise ValueError(f"the adapters were trained with different prompt templates: {trained}. Pass --template.")
    differing = {folder: name for folder, name in trained.items() if template not in (None, name)}
    if differing:
        logger.warning("--template %s differs from the template of the training: %s", template, differing)
    first = next(iter(known.values()), PromptFormat())
    return PromptFormat(template or first.template, first.max_seq_length, first.type_names)
