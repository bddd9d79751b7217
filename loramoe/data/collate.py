"""From tokenised samples to one batch of tensors: padded, or one row without padding.

`PackedCollator` sets `use_cache=False` for a reason: transformers (4.57 to 5.23) derives from `position_ids` that
samples must not see each other only if there is neither an attention mask nor a cache, and models make a cache by
default. Architectures that do not derive it at all are refused where the model is (`loramoe.training.model`).
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
    """Pads tokenised samples on the right; the mask is made by length, as padding is often the end-of-sequence token.

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
            raise ValueError("pad_token_id must be a token id; got None. Pass tokenizer.pad_token_id or eos_token_id.")
        if self.pad_to_multiple_of is not None and self.pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1 or None; got {self.pad_to_multiple_of}.")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            features: B samples with `input_ids` and `labels` (sequences of ints, of one length within a sample) and, in
                all of them or in none, `task_types` (one int).

        Returns:
            `input_ids`, `attention_mask` and `labels`, each [B, S] int64, padded with pad_token_id, 0 and -100; with
            task types also `task_types`, [B] int64.

        Raises:
            ValueError: If there are no samples, labels do not fit tokens, or only some samples have a task type.
        """
        types = _check_samples(features)
        lengths = [len(row["input_ids"]) for row in features]
        multiple = self.pad_to_multiple_of or 1
        shape = len(features), -(-max(lengths) // multiple) * multiple
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        batch = {name: torch.full(shape, fill, dtype=torch.int64) for name, fill in fills.items()}
        for index, (row, length) in enumerate(zip(features, lengths, strict=True)):
            batch["attention_mask"][index, :length] = 1
            for name in ("input_ids", "labels"):
                batch[name][index, :length] = torch.as_tensor(row[name], dtype=torch.int64)
        return batch | types


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
            [1, S] int64 with S the sum of the lengths; `cu_seq_lens_q` and `cu_seq_lens_k`, the bounds of the samples,
            [M + 1] int32; `max_length_q`, `max_length_k` and `sample_lengths` as Python ints, so that attention need
            not ask the device; `use_cache`, False; with task types also `task_types`, [M] int64.

        Raises:
            ValueError: As `SftCollator`, and if a sample has no tokens.
        """
        from transformers import DataCollatorWithFlattening

        samples = [one for feature in features for one in ([feature] if isinstance(feature, Mapping) else feature)]
        types = _check_samples(samples)
        lengths = [len(sample["input_ids"]) for sample in samples]
        if 0 in lengths:
            raise ValueError(f"sample {lengths.index(0)} of the batch has no tokens; expected at least one. Remove it.")
        flatten = DataCollatorWithFlattening(separator_id=IGNORE_INDEX, return_flash_attn_kwargs=True)
        plain = [{name: torch.as_tensor(one[name]).tolist() for name in ("input_ids", "labels")} for one in samples]
        return {**flatten(plain), "sample_lengths": lengths, "use_cache": False, **types}


def _check_samples(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Refuses samples that make no batch; gives `task_types`, if they have them."""
    if not features:
        raise ValueError("a batch needs at least one sample; got none. Check the sampler and the batch size.")
    for index, sample in enumerate(features):
        tokens, labels = len(sample["input_ids"]), len(sample["labels"])
        if tokens != labels:
            raise ValueError(f"sample {index} of the batch has {tokens} input_ids and {labels} labels; expected equal.")
    types = [sample["task_types"] for sample in features if "task_types" in sample]
    if 0 < len(types) < len(features):
        raise ValueError(
            f"{len(types)} of the {len(features)} samples of a batch have task_types; expected all or none. "
            "Give every sample its type."
        )
    return {"task_types": torch.tensor(types, dtype=torch.int64)} if types else {}


class PackedSamples(Dataset[list[dict[str, Any]]]):
    """Rows of whole samples, each of at most max_seq_length tokens; an item is the list of a row's samples.

    Args:
        samples: A `Dataset` of the `datasets` library with a column `length`.
        max_seq_length: Most tokens of a row.
        seed: Seed of the order.

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
