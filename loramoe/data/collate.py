"""From tokenised samples to one batch of tensors: padded, or one row without padding.

`SftCollator` pads. The attention mask comes from the lengths of the samples, never from comparing token ids with the
padding token: many tokenizers pad with the end-of-sequence token, whose real occurrences must stay visible.

`PackedCollator` puts samples into one row, by transformers' own DataCollatorWithFlattening: positions that restart at
each sample, labels that predict no sample from the one before, and the bounds that varlen attention takes. Its
`use_cache=False` is no detail: transformers (4.57 to 5.23) derives from `position_ids` that samples must not see each
other only if there is neither an attention mask nor a cache, and models make a cache by default. Architectures that do
not derive it at all are refused where the model is at hand (`loramoe.training.packing`).

`PackedSamples` fills such rows: it divides the samples of a data set into rows of at most max_seq_length tokens.
"""

from __future__ import annotations

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
    """Pads tokenised samples on the right.

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
            features: B samples with `input_ids` and `labels` (sequences of ints, of one length within a sample) and, in
                all of them or in none, `task_types` (one int).

        Returns:
            `input_ids`, `attention_mask` and `labels`, each [B, S] int64, padded with pad_token_id, 0 and -100; with
            task types also `task_types`, [B] int64.

        Raises:
            ValueError: If there are no samples, if the labels of one do not fit its tokens, or if only some have a task
                type.
        """
        _check_samples(features)
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


@dataclass(frozen=True)
class PackedCollator:
    """Puts the samples of a micro-batch into one row, without padding."""

    def __call__(self, features: Sequence[Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            features: Samples as `SftCollator` takes them, or lists of samples as `PackedSamples` gives them: M samples
                in all.

        Returns:
            `input_ids`, `position_ids` (from 0 in each sample) and `labels` (-100 on the first token of each sample),
            each [1, S] int64, where S is the sum of the lengths; `cu_seq_lens_q` and `cu_seq_lens_k`, the bounds of the
            samples, [M + 1] int32; `max_length_q` and `max_length_k`, ints; `sample_lengths`, M ints, so that attention
            need not ask the device for them; `use_cache`, False; with task types also `task_types`, [M] int64.

        Raises:
            ValueError: If there are no samples, if one has no tokens, if the labels of one do not fit its tokens, or if
                only some have a task type.
        """
        from transformers import DataCollatorWithFlattening

        samples = [one for feature in features for one in ([feature] if isinstance(feature, Mapping) else feature)]
        _check_samples(samples)
        lengths = [len(sample["input_ids"]) for sample in samples]
        if 0 in lengths:
            raise ValueError(f"sample {lengths.index(0)} of the batch has no tokens; expected at least one. Remove it.")
        flatten = DataCollatorWithFlattening(separator_id=IGNORE_INDEX, return_flash_attn_kwargs=True)
        plain = [{name: torch.as_tensor(one[name]).tolist() for name in ("input_ids", "labels")} for one in samples]
        batch: dict[str, Any] = {**flatten(plain), "sample_lengths": lengths, "use_cache": False}
        if "task_types" in samples[0]:
            batch["task_types"] = torch.tensor([one["task_types"] for one in samples], dtype=torch.int64)
        return batch


class PackedSamples(Dataset[list[dict[str, Any]]]):
    """Rows of whole samples, each of at most max_seq_length tokens; an item is the list of a row's samples.

    Args:
        samples: A `Dataset` of the `datasets` library with a column `length`.
        max_seq_length: Most tokens of a row.
        seed: Seed of the order in which samples are put into rows.

    Attributes:
        lengths: Tokens of each row, for `group_by_length`.
    """

    def __init__(self, samples: Any, max_seq_length: int, seed: int = 42) -> None:
        lengths = np.asarray(samples.with_format("numpy")["length"][:], dtype=np.int64)
        self.samples = samples
        self.rows = pack(lengths, max_seq_length, seed)
        self.lengths = [int(lengths[row].sum()) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        columns = self.samples[self.rows[index]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def pack(lengths: np.ndarray[Any, Any], room: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """Divides samples into rows, in random order, so that long and short ones meet.

    Each sample goes to the fullest row that has room for it, which with short samples leaves about one row in a hundred
    empty, and is found at once: bit n of an integer says whether a row with room for n tokens is open.

    Args:
        lengths: [M], tokens of each sample, none above the room of a row.
        room: Most tokens of a row.
        seed: Seed of the order.

    Returns:
        The indices of each row's samples, each sample once.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    is_open = 0
    for index in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[index])
        fitting = is_open >> length
        left = length + (fitting & -fitting).bit_length() - 1 if fitting else room
        if fitting:
            row = with_room[left].pop()
            is_open ^= 0 if with_room[left] else 1 << left
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(index)
        with_room.setdefault(left - length, []).append(row)
        is_open |= 1 << (left - length)
    return [np.asarray(row) for row in rows]


def _check_samples(features: Sequence[Mapping[str, Any]]) -> None:
    """Refuses samples that make no batch."""
    if not features:
        raise ValueError("a batch needs at least one sample; got none. Check the sampler and the batch size.")
    for index, sample in enumerate(features):
        if len(sample["input_ids"]) != len(sample["labels"]):
            raise ValueError(
                f"sample {index} of the batch has {len(sample['input_ids'])} input_ids and {len(sample['labels'])} "
                "labels; expected the same number. Give every token a label, -100 where it is not learnt."
            )
    typed = sum("task_types" in sample for sample in features)
    if 0 < typed < len(features):
        raise ValueError(
            f"{typed} of the {len(features)} samples of a batch have task_types; expected all or none. "
            "Give every sample its task type, or remove the column."
        )
