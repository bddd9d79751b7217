"""Task types for LLaMA-Factory, which drops columns it does not know but takes tokenised samples as they are.

python -m loramoe.integrations.llamafactory --data train.json --tokenised DIR --output_dir TYPED --tokenizer MODEL
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_from_disk
from transformers import AutoTokenizer

from loramoe.data import IGNORE_INDEX, DatasetError, Sample, read_samples


def add_task_types(samples: Sequence[Sample], tokenised: DatasetDict, tokenizer: Any) -> DatasetDict:
    """Adds the column `task_types` to samples that LLaMA-Factory has tokenised, in their order.

    Raises:
        DatasetError: If they are not the same samples in the same order: each must train on its own answer.
    """
    train = tokenised["train"]
    if len(samples) != len(train):
        raise DatasetError(
            f"the data has {len(samples):,} samples, the tokenised data {len(train):,}. Tokenise this data alone, "
            "without packing, max_samples, val_size or mix_strategy."
        )
    for number, (sample, labels) in enumerate(zip(samples, train["labels"], strict=True), start=1):
        learnt = tokenizer.decode([token for token in labels if token != IGNORE_INDEX], skip_special_tokens=True)
        # Without white space, of which a tokenizer may add or drop some; either may have been cut.
        one, other = "".join(sample.output.split()), "".join(learnt.split())
        if not other or not (one.startswith(other) or other.startswith(one)):
            raise DatasetError(
                f"sample {number} has the answer {sample.output!r}, and the tokenised sample {number} {learnt!r}. "
                "Tokenise this data again, without shuffling or mixing."
            )
    return DatasetDict({**tokenised, "train": train.add_column("task_types", [each.task_type for each in samples])})


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="file or folder of the samples")
    parser.add_argument("--tokenised", required=True, help="tokenized_path of the run that tokenised them")
    parser.add_argument("--output_dir", required=True, help="folder to write: tokenized_path of the run that trains")
    parser.add_argument("--tokenizer", required=True, help="the model, or its tokenizer")
    flags = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(flags.tokenizer)
    typed = add_task_types(list(read_samples(flags.data)), load_from_disk(flags.tokenised), tokenizer)
    typed.save_to_disk(flags.output_dir)
    print(f"{flags.output_dir}: {len(typed['train']):,} samples with their task types")


if __name__ == "__main__":
    main()
