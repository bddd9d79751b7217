"""Adds the task types of a data set's rows to what LLaMA-Factory made of them.

    python integrations/llamafactory/add_task_types.py my_rows/train.json tokenised typed --tokenizer MODEL

LLaMA-Factory drops every column that its converters do not know, but takes tokenised rows from a folder as they are
(`tokenized_path`). It keeps the rows in their order, which is checked here: each row must train on its own answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loramoe.data import IGNORE_INDEX, DatasetError, Sample, read_samples


def add_task_types(rows: list[Sample], tokenised: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Adds the column `task_types`.

    Args:
        rows: Rows of a data set.
        tokenised: What LLaMA-Factory made of them, in `train`.
        tokenizer: The tokenizer that it used.

    Returns:
        The tokenised rows with their types.

    Raises:
        DatasetError: If they are not the same rows in the same order.
    """
    train = tokenised["train"]
    if len(rows) != len(train):
        raise DatasetError(
            f"the data has {len(rows):,} rows, the tokenised data {len(train):,}. Tokenise this data alone, without "
            "packing, max_samples, val_size or mix_strategy."
        )
    for number, (row, labels) in enumerate(zip(rows, train["labels"], strict=True), start=1):
        answer, learnt = _bare(row.output), _bare(_text(labels, tokenizer))
        if not learnt or not (answer.startswith(learnt) or learnt.startswith(answer)):  # either may have been cut
            raise DatasetError(
                f"row {number} answers {row.output!r}, but the tokenised row {number} trains on "
                f"{_text(labels, tokenizer)!r}. Tokenise this data again, without shuffling or mixing."
            )
    return DatasetDict({**tokenised, "train": train.add_column("task_types", [row.task_type for row in rows])})


def _text(labels: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    learnt = [token for token in labels if token != IGNORE_INDEX]
    return str(tokenizer.decode(learnt, skip_special_tokens=True))


def _bare(text: str) -> str:
    """The text without white space, of which a tokenizer may add or drop some."""
    return "".join(text.split())


def main() -> None:
    """Reads the command line, and writes the typed rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, help="file or folder of the rows, as dataset_info.json names it")
    parser.add_argument("tokenised", type=Path, help="tokenized_path of the run that tokenised them")
    parser.add_argument("typed", type=Path, help="folder to write: tokenized_path of the run that trains")
    parser.add_argument("--tokenizer", required=True, help="the model, or its tokenizer")
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.tokenizer)
    typed = add_task_types(list(read_samples(arguments.rows)), load_from_disk(str(arguments.tokenised)), tokenizer)
    typed.save_to_disk(str(arguments.typed))
    print(f"{arguments.typed}: {len(typed['train']):,} rows with their task types")


if __name__ == "__main__":
    main()
