"""From tokenised rows to one row of tensors, without padding: the samples of a micro-batch, one after the other.

The concatenation is transformers' own DataCollatorWithFlattening, which is what its attention is written for: positions
that restart at each sample, labels that predict no sample from the one before, and the bounds that FlashAttention's
varlen kernels take, so that they need not be found again in every layer. Added here are the task types, which it drops,
`use_cache=False`, and the checks.

`use_cache=False` is no detail. transformers (4.57 to 5.23) derives from `position_ids` that samples must not see each
other only if there is neither an attention mask nor a cache, and models make a cache by default: without it, samples
packed into a row see all those before them, silently. Architectures that do not derive it at all are refused where the
model is at hand (`loramoe.training.packing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loramoe.data.collate import IGNORE_INDEX, check_rows


@dataclass(frozen=True)
class PackedCollator:
    """Packs the M samples of a micro-batch into one row."""

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            features: M samples with `input_ids` and `labels` (lists of ints, of one length within a sample) and, in all
                of them or in none, `task_types` (one int).

        Returns:
            `input_ids`, `position_ids` (from 0 in each sample) and `labels` (-100 on the first token of each sample),
            each [1, S] int64, where S is the sum of the lengths; `cu_seq_lens_q` and `cu_seq_lens_k`, the bounds of the
            samples, [M + 1] int32; `max_length_q` and `max_length_k`, ints; `use_cache`, False; with task types also
            `task_types`, [M] int64.

        Raises:
            ValueError: If there are no samples, if one has no tokens, if the labels of one do not fit its tokens, or if
                only some have a task type.
        """
        from transformers import DataCollatorWithFlattening

        check_rows(features)
        for index, row in enumerate(features):
            if len(row["input_ids"]) == 0:
                raise ValueError(f"row {index} of the batch has no tokens; expected at least one. Remove the row.")
        flatten = DataCollatorWithFlattening(separator_id=IGNORE_INDEX, return_flash_attn_kwargs=True)
        plain = [{name: torch.as_tensor(row[name]).tolist() for name in ("input_ids", "labels")} for row in features]
        batch: dict[str, Any] = {**flatten(plain), "use_cache": False}
        if "task_types" in features[0]:
            batch["task_types"] = torch.tensor([row["task_types"] for row in features], dtype=torch.int64)
        return batch
