"""The files of a report, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Final

import loramoe
from loramoe.report.measures import Measures
from loramoe.report.page import Source, html, markdown
from loramoe.report.pictures import draw_all
from loramoe.training.files import filled_then_moved

PAGE: Final = "experts.html"
TEXT: Final = "experts.md"
NUMBERS: Final = "experts.json"


def write_pages(measures: Measures, source: Source, folder: Path) -> None:
    """Writes experts.html, experts.md, experts.json and the pictures; files of other names in the folder stay.

    Args:
        measures: The numbers.
        source: What was looked at.
        folder: Where to; is made if it is not there.

    Raises:
        OSError: If it cannot be written; then it is as it was.
    """
    with filled_then_moved(folder, writer=True) as draft:
        pictures = draw_all(measures, draft)
        (draft / PAGE).write_text(html(measures, source, pictures, draft), encoding="utf-8")
        (draft / TEXT).write_text(markdown(measures, source, pictures), encoding="utf-8")
        (draft / NUMBERS).write_text(_as_json(measures, source), encoding="utf-8")
    for old in {*folder.glob("experts_gates_type*.png")} - {folder / picture.file for picture in pictures}:
        old.unlink()  # of an earlier report on rows of other task types


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
    return json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
