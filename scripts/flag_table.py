"""Writes the list of flags of docs/reference/flags.md from the dataclasses that define them.

python scripts/flag_table.py            # writes
python scripts/flag_table.py --check    # fails if the page differs
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import TrainingArguments

from loramoe.training.arguments import DataArguments, ModelArguments, TrainArguments
from scripts.blocks import main

GROUPS = {"Model and adapter": ModelArguments, "Data": DataArguments, "Training": TrainArguments}


def own_fields(group: type) -> list[dataclasses.Field[Any]]:
    """The flags of a group that transformers does not have, or has with other words or another default."""
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    mine = dataclasses.fields(group)
    return [field for field in mine if group is not TrainArguments or field is not theirs.get(field.name)]


def line(field: dataclasses.Field[Any]) -> str:
    """A flag as a line of the list: names, default, meaning."""
    names = [field.name, *(alias.removeprefix("--") for alias in field.metadata.get("aliases", ()))]
    default = "" if field.default in (None, dataclasses.MISSING) else f" (`{_plain(field.default)}`)"
    return f"- {', '.join(f'`{name}`' for name in names)}{default}: {_escaped(field.metadata['help'])}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*").replace(" %(default)s", "")


def flags() -> str:
    """The flags of all groups."""
    groups = ("\n".join([f"## {title}\n", *map(line, own_fields(group))]) for title, group in GROUPS.items())
    return "\n\n".join(groups)


def blocks() -> dict[tuple[str, str], str]:
    """What stands in which block of which page."""
    return {("reference/flags.md", "flags"): flags()}


if __name__ == "__main__":
    sys.exit(main(blocks(), __doc__ or ""))
