"""From rows to token ids, stored on disk once and found again.

Every finished dataset is a folder of its own, named by its fingerprint. It grows shard by shard (`shards`) in a folder
beside it, `<fingerprint>.building`, and is renamed when it is complete: whoever finds the folder finds all of it, and
whoever finds the unfinished one goes on with it. Of two processes that need the same dataset, the second waits at a
lock, which ends with the process that holds it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from loramoe.data import report as reports
from loramoe.utils import sync
from loramoe.data.fingerprint import data_fingerprint
from loramoe.data.read import DatasetError, data_files
from loramoe.data.report import TokeniseReport
from loramoe.data.shards import shard_files, write_shards, write_whole
from loramoe.data.templates import get_template

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE: Final = "loramoe_report.json"

logger = logging.getLogger(__name__)


def tokenise_dataset(
    path: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "release",
    max_seq_length: int = 1024,
    task_types: Collection[int] | None = None,
    num_proc: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Dataset, TokeniseReport]:
    """Tokenises a file or folder of rows, or finds the result of having done so.

    Args:
        path: A `.json` or `.jsonl` file, or a folder of such.
        tokenizer: The model's tokenizer.
        template: Name of the prompt template, `"release"` or `"chat"`.
        max_seq_length: Most tokens of a row, at least 2. Longer answers are cut; a row whose prompt leaves no room for
            one token of the answer is dropped.
        task_types: The task types that the experts have; None accepts any integer.
        num_proc: Processes that tokenise; the result does not depend on it.
        cache_dir: Folder for finished datasets; by default `loramoe` in the cache of the `datasets` library.

    Returns:
        The dataset with the columns `input_ids`, `labels` (-100 on the prompt) and `task_types` (one int per row), and
        the report.

    Raises:
        DatasetError: If rows are broken (see `iter_rows`) or none fits into max_seq_length.
        ImportError: If the `datasets` library is not installed.
        WorkerDiedError: If a process ends before its work is done; the next call goes on with what is finished.
        ValueError: If an argument is out of range or the tokenizer does not suit the template.
    """
    for name, value, least in (("max_seq_length", max_seq_length, 2), ("num_proc", num_proc, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {name}={value}. Raise it.")
    datasets = _import_datasets()
    encoder = get_template(template, tokenizer)
    root = Path(cache_dir).expanduser() if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "loramoe"
    files = data_files(path)
    finished = root / data_fingerprint(
        files, tokenizer, template=template, max_seq_length=max_seq_length, task_types=task_types
    )
    if not finished.is_dir():
        settings: dict[str, Any] = {"max_seq_length": max_seq_length, "task_types": task_types, "num_proc": num_proc}
        build = partial(write_shards, files, encoder=encoder, **settings)
        root.mkdir(parents=True, exist_ok=True)
        with _alone(finished):
            if not finished.is_dir():
                _build(build, path, finished)
    return _load(finished)


def _load(finished: Path) -> tuple[Dataset, TokeniseReport]:
    datasets = _import_datasets()
    try:
        report = reports.load(finished / REPORT_FILE)
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in shard_files(finished)])
    except (OSError, ValueError, TypeError, KeyError) as error:  # pyarrow's errors are among them
        raise DatasetError(f"{finished}: this tokenised data is damaged ({error}). Remove the folder.") from error
    if len(rows) != report.kept:
        raise DatasetError(
            f"{finished}: this tokenised data is damaged: {len(rows):,} rows, {report.kept:,} were written. Remove the "
            "folder."
        )
    return rows, report


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "tokenising needs the datasets library, which is not installed. Run: pip install datasets"
        ) from error
    return datasets


@contextmanager
def _alone(finished: Path) -> Iterator[None]:
    """Waits until no other process builds the dataset."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{finished}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process tokenises the same data (%s.building); waiting for it", finished)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(build: Callable[[Path], TokeniseReport], path: str | os.PathLike[str], finished: Path) -> None:
    """Builds the folder of a dataset, then gives it its name."""
    building = finished.with_name(f"{finished.name}.building")
    building.mkdir(exist_ok=True)
    try:
        report = build(building)
        if report.kept == 0:
            raise DatasetError(
                f"{os.fspath(path)}: none of the {report.rows:,} rows has room for an answer, because every prompt "
                f"alone has max_seq_length={report.max_seq_length} tokens or more. Raise max_seq_length."
            )
    except ValueError:  # a row is to be repaired, which makes other data: of this, nothing will ever be used
        shutil.rmtree(building, ignore_errors=True)
        raise
    for left in building.glob(".*"):  # by processes that were killed in the midst of writing
        left.unlink(missing_ok=True)
    write_whole(building / REPORT_FILE, reports.dumps(report))
    building.rename(finished)
    sync(finished.parent)
