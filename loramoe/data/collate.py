"""From tokenised rows to one batch of tensors.

The attention mask comes from the lengths of the rows, never from comparing token ids with the padding token: many
tokenizers pad with the end-of-sequence token, whose real occurrences must stay visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

IGNORE_INDEX: Final = -100
"""The label that the loss of transformers leaves out."""


@dataclass(frozen=True)
class SftCollator:
    """Pads tokenised rows on the right.

    Args:
        pad_token_id: Token id that fills `input_ids`; masked, so any id of the vocabulary will do.
        pad_to_multiple_of: Rounds the length of a batch up to a multiple of this many tokens, for kernels that like it.

    Raises:
        ValueError: If pad_token_id is None or pad_to_multiple_of is below 1.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise ValueError(
                "pad_token_id must be a token id; got None. Pass tokenizer.pad_token_id, or tokenizer.eos_token_id if "
                "there is none: padding is masked by length, so they may be the same."
            )
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(
                f"pad_to_multiple_of must be at least 1 or None; got {self.pad_to_multiple_of}. Leave it out."
            )

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            features: B rows with `input_ids` and `labels` (sequences of ints, of one length within a row) and, in all
                of them or in none, `task_types` (one int).

        Returns:
            `input_ids`, `attention_mask` and `labels`, each [B, S] int64, padded with pad_token_id, 0 and -100; with
            task types also `task_types`, [B] int64.

        Raises:
            ValueError: If there are no rows, if the labels of one do not fit its tokens, or if only some have a task
                type.
        """
        check_rows(features)
        batch = {
            "input_ids": self._pad([row["input_ids"] for row in features], self.pad_token_id),
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in features], 0),
            "labels": self._pad([row["labels"] for row in features], IGNORE_INDEX),
        }
        if "task_types" in features[0]:
            batch["task_types"] = torch.tensor([row["task_types"] for row in features], dtype=torch.int64)
        return batch

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        """Pads B rows of any lengths with a value to [B, S] int64."""
        multiple = self.pad_to_multiple_of or 1
        length = -(-max(map(len, rows)) // multiple) * multiple
        padded_BS = torch.full((len(rows), length), value, dtype=torch.int64)
        for index, row in enumerate(rows):
            padded_BS[index, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        return padded_BS


def check_rows(features: Sequence[Mapping[str, Any]]) -> None:
    """Refuses rows that make no batch.

    Args:
        features: Rows with `input_ids`, `labels` and maybe `task_types`.

    Raises:
        ValueError: If there are none, if the labels of one do not fit its tokens, or if only some have a task type.
    """
    if not features:
        raise ValueError("a batch needs at least one row; got none. Check the sampler and the batch size.")
    for index, row in enumerate(features):
        if len(row["input_ids"]) != len(row["labels"]):
            raise ValueError(
                f"row {index} of the batch has {len(row['input_ids'])} input_ids and {len(row['labels'])} labels; "
                "expected the same number. Give every token a label, -100 where it is not learnt."
            )
    typed = sum("task_types" in row for row in features)
    if 0 < typed < len(features):
        raise ValueError(
            f"{typed} of the {len(features)} rows of a batch have task_types; expected all or none. "
            "Give every row its task type, or remove the column."
        )
