"""From tokenised samples to one batch of tensors: padded, or one row without padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset

IGNORE_INDEX: Final = -100
"""The label that the loss of transformers leaves out."""


@dataclass(frozen=True)
class SftCollator:
    """Pads samples on the right; the mask is made by length, as padding is often the end-of-sequence token."""

    pad_token_id: int  # fills `input_ids`; masked, so any id of the vocabulary will do
    pad_to_multiple_of: int | None = None  # the length of a batch is rounded up to a multiple of this many tokens

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise ValueError("pad_token_id must be a token id; got None. Pass tokenizer.pad_token_id or eos_token_id.")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch of B samples with `input_ids`, `labels` and, in all of them or in none, `task_types` (an int).

        Returns:
            `input_ids`, `attention_mask` and `labels`, each [B, S] int64, padded with pad_token_id, 0 and -100; with
            task types also `task_types`, [B] int64.
        """
        lengths = [len(sample["input_ids"]) for sample in features]
        multiple = self.pad_to_multiple_of or 1
        shape = len(features), -(-max(lengths) // multiple) * multiple
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        batch = {name: torch.full(shape, fill, dtype=torch.int64) for name, fill in fills.items()}
        for index, (sample, length) in enumerate(zip(features, lengths, strict=True)):
            batch["attention_mask"][index, :length] = 1
            for name in ("input_ids", "labels"):
                batch[name][index, :length] = torch.as_tensor(sample[name], dtype=torch.int64)
        return batch | _task_types(features)


class PackedCollator:
    """Puts the samples of a micro-batch into one row, without padding.

    transformers (4.57 to 5.23) keeps samples apart by `position_ids` only if there is neither an attention mask nor a
    cache, hence `use_cache=False`. `loramoe.training.model` refuses models that do not keep them apart at all.
    """

    def __call__(self, features: Sequence[Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Makes a batch of samples as `SftCollator` takes them, or lists of samples as in `PackedSamples`: M in all.

        Returns:
            `input_ids`, `position_ids` (from 0 in each sample) and `labels` (-100 on the first token of each sample),
            [1, S] int64; `cu_seq_lens_q` and `cu_seq_lens_k`, the bounds of the samples, [M + 1] int32; `max_length_q`,
            `max_length_k` and `sample_lengths` as Python ints, so that attention need not ask the device; `use_cache`,
            False; with task types also `task_types`, [M] int64.
        """
        from transformers import DataCollatorWithFlattening

        samples = [one for feature in features for one in ([feature] if isinstance(feature, Mapping) else feature)]
        plain = [{name: torch.as_tensor(one[name]).tolist() for name in ("input_ids", "labels")} for one in samples]
        flatten = DataCollatorWithFlattening(separator_id=IGNORE_INDEX, return_flash_attn_kwargs=True)
        lengths = [len(sample["input_ids"]) for sample in samples]
        return {**flatten(plain), "sample_lengths": lengths, "use_cache": False, **_task_types(samples)}


def _task_types(samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    types = [sample["task_types"] for sample in samples if "task_types" in sample]
    if 0 < len(types) < len(samples):
        raise ValueError(f"{len(types)} of the {len(samples)} samples of a batch have task_types. Give one to all.")
    return {"task_types": torch.tensor(types, dtype=torch.int64)} if types else {}


class PackedSamples(Dataset[list[dict[str, Any]]]):
    """Rows of whole samples, each of at most max_seq_length tokens; an item is the list of a row's samples.

    `samples` is a `Dataset` of the `datasets` library; `lengths` are the tokens of each row, for `group_by_length`.
    """

    def __init__(self, samples: Any, max_seq_length: int, seed: int = 42) -> None:
        lengths = np.asarray(samples.with_format("numpy")["length"][:], dtype=np.int64)
        self.samples = samples
        self.rows = pack(lengths, max_seq_length, seed)
        self.lengths = [int(lengths[row].sum()) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return list(self.samples.__getitems__(self.rows[index].tolist()))


def pack(lengths: np.ndarray[Any, Any], room: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Divides samples into rows: in random order, each goes to the fullest row that has room for it (best fit).

    Of samples with `lengths` of at most `room` tokens, it returns the indices of each row's, each index once.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # tokens left and row, sorted
    shortest = int(lengths.min(initial=room))
    for index in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[index])
        place = bisect_left(open_rows, (length, 0))
        if place == len(open_rows):
            open_rows.append((room, len(rows)))
            rows.append([])
        left, row = open_rows.pop(place)
        rows[row].append(index)
        if left - length >= shortest:
            insort(open_rows, (left - length, row))
    return [np.asarray(row) for row in rows]
