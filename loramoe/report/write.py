"""The files of a report: each is there whole or not, and where the page is, so is all that it shows.

`experts.json` keeps to ASCII, as names of files may hold bytes that are no text.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Final

import loramoe
from loramoe.report.measures import Measures
from loramoe.report.page import Source, html, markdown
from loramoe.report.pictures import draw_all
from loramoe.utils import atomic_save_dir

PAGE: Final = "experts.html"
TEXT: Final = "experts.md"
NUMBERS: Final = "experts.json"

# Not the Trainer's: a report may be written into the folder of a run that saves a checkpoint meanwhile.
_DRAFT = ".experts.incomplete"
_OURS = re.compile(r"experts(\.html|\.md|\.json|_(gates_type-?\d+|shares|shares_by_layer|entropy|variation)\.png)")


def write_pages(measures: Measures, source: Source, folder: Path) -> None:
    """Writes experts.html, experts.md, experts.json and the pictures; files of other names in the folder stay.

    Args:
        measures: The numbers.
        source: What was looked at.
        folder: Where to; is made if it is not there.

    Raises:
        OSError: If they cannot be written; what was there before stays.
    """
    with atomic_save_dir(folder, writer=True, hidden=_DRAFT, last=PAGE) as draft:
        pictures = draw_all(measures, draft)
        (draft / PAGE).write_text(html(measures, source, pictures, draft), encoding="utf-8")
        (draft / TEXT).write_text(markdown(measures, source, pictures), encoding="utf-8")
        (draft / NUMBERS).write_text(_as_json(measures, source), encoding="utf-8")
    for old in _written(folder) - {PAGE, TEXT, NUMBERS, *(picture.file for picture in pictures)}:
        (folder / old).unlink()  # of an earlier report on rows of other task types


def remove_pages(folder: Path) -> None:
    """Removes what `write_pages` has left in a folder, cut off or not; all else stays.

    Args:
        folder: The folder, if there is one.
    """
    for name in sorted(_written(folder), key=lambda name: name != PAGE):  # the page first, as it was written last
        (folder / name).unlink()
    shutil.rmtree(folder / _DRAFT, ignore_errors=True)


def _written(folder: Path) -> set[str]:
    """Names of the files that are ours."""
    there = folder.iterdir() if folder.is_dir() else ()
    return {file.name for file in there if file.is_file() and _OURS.fullmatch(file.name)}


def check_folder(folder: Path) -> None:
    """Refuses a folder that cannot be one, before any work is done for it.

    Args:
        folder: Where to write; it, or what is there of the way to it, must be a folder that lets us write.

    Raises:
        OSError: If it is not.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, not a folder. Choose another for the report.")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} cannot be written to. Choose another folder for the report.")


def _as_json(measures: Measures, source: Source) -> str:
    config = source.config
    told = {
        "loramoe": loramoe.__version__,
        "adapter": source.adapter,
        "base_model": source.base_model,
        "data": source.data,
        "blc_target": config.blc_target,
        "blc_weight": config.blc_weight,
        "blc_alpha": config.blc_alpha,
        **dataclasses.asdict(measures),
    }
    return json.dumps(told, indent=1, allow_nan=False) + "\n"
