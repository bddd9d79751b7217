"""From rows to token ids, stored on disk once and found again.

Every finished dataset is a folder of its own, named by its fingerprint. It is built elsewhere and moved into place in
one step, so whoever finds the folder finds all of it, and of two processes that build the same one the second simply
takes what the first has put there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.fingerprint import data_fingerprint
from loramoe.data.read import DatasetError, Row, data_files, iter_rows
from loramoe.data.template import PromptTemplate, get_template

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPORT_FILE: Final = "loramoe_report.json"


@dataclass(frozen=True)
class TokeniseReport:
    """What became of the rows of a dataset.

    Attributes:
        rows: Rows read.
        kept: Rows that are in the dataset.
        cut: Kept rows whose answer was cut at max_seq_length.
        dropped: Rows whose prompt left no room for a single token of the answer.
        special: Kept rows whose own text became a special token (only the chat template lets it).
        tokens: Tokens of the kept rows, prompts and answers.
        task_types: Kept rows of each task type.
        max_seq_length: The length in tokens that rows were held to.
    """

    rows: int
    kept: int
    cut: int
    dropped: int
    special: int
    tokens: int
    task_types: dict[int, int]
    max_seq_length: int

    def __str__(self) -> str:
        types = ", ".join(f"type {task_type}: {count:,}" for task_type, count in sorted(self.task_types.items()))
        lines = [f"rows read: {self.rows:,}, kept: {self.kept:,} ({types}), tokens: {self.tokens:,}"]
        if self.cut:
            lines.append(f"answers cut at max_seq_length={self.max_seq_length}: {self.cut:,}")
        if self.dropped:
            lines.append(f"rows dropped, as the prompt fills max_seq_length={self.max_seq_length}: {self.dropped:,}")
        if self.special:
            lines.append(
                f"rows with the text of a special token, which the chat template takes for one: {self.special:,}"
            )
        return "\n".join(lines)


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
        ValueError: If an argument is out of range or the tokenizer does not suit the template.
    """
    for name, value, least in (("max_seq_length", max_seq_length, 2), ("num_proc", num_proc, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {name}={value}. Raise it.")
    datasets = _import_datasets()
    encoder = get_template(template, tokenizer)
    root = Path(cache_dir).expanduser() if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "loramoe"
    finished = root / data_fingerprint(
        data_files(path), tokenizer, template=template, max_seq_length=max_seq_length, task_types=task_types
    )
    if not finished.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root, ignore_cleanup_errors=True) as workspace:
            rows = _store_rows(path, task_types, workspace)
            tokenised = _store_tokens(rows, encoder, max_seq_length, num_proc)
            report = _report(path, len(rows), tokenised, max_seq_length)
            _publish(tokenised, report, Path(workspace) / finished.name, finished)
    return datasets.load_from_disk(str(finished)), _load_report(finished)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "tokenising needs the datasets library, which is not installed. Run: pip install datasets"
        ) from error
    return datasets


def _store_rows(path: str | os.PathLike[str], task_types: Collection[int] | None, workspace: str) -> Dataset:
    """Reads and checks all rows and leaves them on disk, so that memory does not grow with the data."""
    datasets = _import_datasets()
    text, integer = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features({"instruction": text, "input": text, "output": text, "task_type": integer})
    try:
        return datasets.Dataset.from_generator(
            partial(iter_rows, path, task_types), features=features, cache_dir=workspace
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DatasetError):
            raise error.__cause__ from None  # the library's wrapping would hide what to repair
        raise


def _store_tokens(rows: Dataset, encoder: PromptTemplate, max_seq_length: int, num_proc: int) -> Dataset:
    datasets = _import_datasets()
    ids, flag = datasets.Sequence(datasets.Value("int32")), datasets.Value("bool")
    columns = {"input_ids": ids, "labels": ids, "task_types": datasets.Value("int64"), "cut": flag, "special": flag}
    workers = min(num_proc, len(rows))
    return rows.map(
        _tokenise_batch,
        batched=True,
        fn_kwargs={"encoder": encoder, "max_seq_length": max_seq_length},
        remove_columns=rows.column_names,
        features=datasets.Features(columns),
        num_proc=workers if workers > 1 else None,  # 1 would start a process too
        new_fingerprint="tokens",  # the folder has the true one; this spares hashing the tokenizer once more
        desc="Tokenising",
    )


def _tokenise_batch(batch: dict[str, list[Any]], encoder: PromptTemplate, max_seq_length: int) -> dict[str, list[Any]]:
    rows = [cast(Row, dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)]
    out: dict[str, list[Any]] = {"input_ids": [], "labels": [], "task_types": [], "cut": [], "special": []}
    for row, (prompt, target, special) in zip(rows, encoder.encode(rows), strict=True):
        room = max_seq_length - len(prompt)
        if room < 1:
            continue
        out["input_ids"].append(prompt + target[:room])
        out["labels"].append([IGNORE_INDEX] * len(prompt) + target[:room])
        out["task_types"].append(row["task_type"])
        out["cut"].append(len(target) > room)
        out["special"].append(special)
    return out


def _report(path: str | os.PathLike[str], rows: int, tokenised: Dataset, max_seq_length: int) -> TokeniseReport:
    if len(tokenised) == 0:
        raise DatasetError(
            f"{os.fspath(path)}: none of the {rows:,} rows has room for an answer, because every prompt alone has "
            f"max_seq_length={max_seq_length} tokens or more. Raise max_seq_length."
        )
    import pyarrow.compute as pc

    column = tokenised.data.column
    return TokeniseReport(
        rows=rows,
        kept=len(tokenised),
        cut=pc.sum(column("cut")).as_py(),
        dropped=rows - len(tokenised),
        special=pc.sum(column("special")).as_py(),
        tokens=pc.sum(pc.list_value_length(column("input_ids"))).as_py(),
        task_types={entry["values"]: entry["counts"] for entry in pc.value_counts(column("task_types")).to_pylist()},
        max_seq_length=max_seq_length,
    )


def _load_report(finished: Path) -> TokeniseReport:
    fields = json.loads((finished / REPORT_FILE).read_text(encoding="utf-8"))
    task_types = {int(task_type): count for task_type, count in fields.pop("task_types").items()}
    return TokeniseReport(**fields, task_types=task_types)


def _publish(tokenised: Dataset, report: TokeniseReport, built: Path, finished: Path) -> None:
    """Writes the whole folder of a dataset, then moves it into place, unless another process was faster."""
    tokenised.remove_columns(["cut", "special"]).save_to_disk(str(built))
    (built / REPORT_FILE).write_text(json.dumps(asdict(report)), encoding="utf-8")
    try:
        built.rename(finished)
    except OSError:
        if not finished.is_dir():
            raise
