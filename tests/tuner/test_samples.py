"""Which samples a call of the model holds: rows, rows of several samples, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from loramoe.tuner.forward_pass import arguments_by_name, membership_of, validate_samples, validate_task_types


class Model(torch.nn.Module):
    """A model that is never computed: its configuration and its forward's signature are all that is looked at."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = LlamaConfig(**config)

    def forward(self, input_ids: object, attention_mask: object = None, labels: object = None) -> None: ...


IDS, TYPES = torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])


def several(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """A call with rows of equal length, each given by the lengths of its samples."""
    positions = torch.tensor([[p for length in row for p in range(length)] for row in rows])
    return {"input_ids": torch.ones_like(positions), "position_ids": positions}


def tokens_of(call: dict[str, Any], types: torch.Tensor) -> list[float]:
    samples = membership_of(Model(), call, types)
    validate_samples(samples, types, [[0, 1]])
    return samples.tokens_M.tolist()


def test_arguments_by_name() -> None:
    assert arguments_by_name(Model(), (1, 2), {"labels": 3}) == {"input_ids": 1, "attention_mask": 2, "labels": 3}
    assert arguments_by_name(Model(), (), {"labels": 3}) == {"labels": 3}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]])}, [2, 2]),
        ({"input_ids": IDS}, [3, 3]),
        ({"inputs_embeds": torch.ones(2, 3, 8), "input_ids": None}, [3, 3]),
        # with a cache, the mask covers the past too
        ({"input_ids": IDS, "attention_mask": torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}, [3, 2]),
        ({"input_ids": IDS, "position_ids": torch.tensor([[4, 5, 6]])}, [3, 3]),
        # left padding: position ids that do not restart at 0 are no samples where there is a mask
        (
            {
                "input_ids": IDS,
                "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
                "position_ids": torch.tensor([[1, 0, 1], [0, 1, 2]]),
            },
            [2, 3],
        ),
        # several samples a row, the position ids of one row for all
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.long), "position_ids": several([[2, 3]])["position_ids"]},
            [2, 3] * 2,
        ),
    ],
)
def test_tokens_of_each_sample(call: dict[str, Any], expected: list[float]) -> None:
    assert tokens_of(call, torch.zeros(len(expected), dtype=torch.long)) == expected


@pytest.mark.parametrize(
    ("call", "types", "message"),
    [
        ({"pixel_values": torch.ones(2, 3, 4, 4)}, [0, 1], r"need input_ids or inputs_embeds .* \['pixel_values'\]"),
        ({"input_ids": IDS[0]}, [0, 1, 0], "of B rows and S tokens"),
        ({"input_ids": IDS}, [0, 1, 0], r"one type for each of the B=2 samples; got 3.*position_ids"),
        ({"input_ids": IDS}, [0], r"one type for each of the B=2 samples; got 1"),
        ({"input_ids": IDS, "position_ids": torch.zeros(3, 2, 3)}, [0, 1, 0], r"the B=2 samples; got 3"),  # M-RoPE
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)},
            [0, 1],
            r"must be \[B, S\].* got \[2, 1, 3, 3\]",
        ),
        (several([[2, 3]]), [0, 1, 0], r"got 3 types, while position_ids start 2 samples in the B=1 rows of S=5"),
        (several([[2, 3]]), [0], r"got 1 types, while position_ids start 2 samples"),
        ({**several([[2, 3]]), "attention_mask": torch.ones(1, 5)}, [0, 1], "need attention_mask=None"),
        ({**several([[2, 3]]), "past_key_values": object()}, [0, 1], "need past_key_values=None"),
        ({"input_ids": IDS}, [0, 7], r"task_types has 7, .* no expert; the experts have types \[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_refused(call: dict[str, Any], types: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens_of(call, torch.tensor(types))


@pytest.mark.parametrize(
    ("task_types", "got"),
    [
        ([1, 0, 1], r"\[1, 0, 1\]"),
        (1, "1"),
        (torch.tensor(1), r"torch.int64 \[\]"),
        (torch.ones(3, 1).int(), r"torch.int32 \[3, 1\]"),
        (torch.ones(3), r"torch.float32 \[3\]"),
    ],
)
def test_task_types_that_are_no_vector_are_refused(task_types: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"task_types must be one integer for each sample, .*; got {got}\."):
        validate_task_types(Model(), task_types)


def test_encoder_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Model is an encoder-decoder.* set blc_weight=0"):
        membership_of(Model(is_encoder_decoder=True), {"input_ids": IDS}, TYPES)


def test_flash_attention_takes_several_samples_in_one_row_only() -> None:
    model = Model()
    model.config._attn_implementation = "flash_attention_2"
    assert len(membership_of(model, several([[2, 3]]), TYPES).tokens_M) == 2
    with pytest.raises(ValueError, match=r"flash_attention_2 .* single row only; got B=2"):
        membership_of(model, several([[2, 3]] * 2), torch.tensor([0, 1, 0, 1]))
