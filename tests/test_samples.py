"""Which tokens of a batch are real, and whose: as the constraint reads it from the model's call."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, XLNetConfig, XLNetLMHeadModel

from loramoe import LoraMoeConfig
from loramoe.balance import importance
from loramoe.samples import Samples, by_name, by_token, samples_of


class Model(nn.Module):
    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = LlamaConfig(**config)

    def forward(self, input_ids: object, attention_mask: object = None, labels: object = None) -> None: ...


IDS, TYPES = torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])


def test_positional_arguments_get_their_names() -> None:
    assert by_name(Model(), (1, 2), {"labels": 3}) == {"input_ids": 1, "attention_mask": 2, "labels": 3}
    assert by_name(Model(), (), {"labels": 3}) == {"labels": 3}


def mask_of(call: dict[str, Any]) -> torch.Tensor:
    return samples_of(Model(), call, TYPES).mask_MS


def test_the_mask_says_which_tokens_are_real() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.equal(mask_of({"input_ids": IDS, "attention_mask": mask}), mask.bool())


@pytest.mark.parametrize("call", [{"input_ids": IDS}, {"inputs_embeds": torch.ones(2, 3, 8), "input_ids": None}])
def test_without_a_mask_every_token_is_real(call: dict[str, Any]) -> None:
    assert torch.equal(mask_of(call), torch.ones(2, 3, dtype=torch.bool))


def test_a_mask_that_covers_the_cache_too_is_cut_to_the_new_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    expected = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.equal(mask_of({"input_ids": IDS, "attention_mask": mask}), expected)


def test_a_number_of_types_other_than_of_samples_is_refused() -> None:
    for types in (torch.tensor([0, 1, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match=f"one type for each of the B=2 samples; got {len(types)}.*position_ids"):
            samples_of(Model(), {"input_ids": IDS}, types)


def test_a_mask_of_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\], .* got \[2, 1, 3, 3\]"):
        mask_of({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)})


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Model is an encoder-decoder, .* Leave task_types out, and set blc_weight=0"):
        samples_of(Model(is_encoder_decoder=True), {"input_ids": IDS}, TYPES)


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (1, 6, 4), (2, 1, 3, 4)])
def test_gates_come_out_by_sample(shape: tuple[int, ...]) -> None:
    gates, samples = torch.arange(24).view(shape), Samples(IDS.bool(), None, (2, 3))
    assert torch.equal(samples.gates("up_proj", gates), gates.view(2, 3, 4))


@pytest.mark.parametrize("shape", [(5,), (3, 2), (1, 3, 2), (2, 3, 2)])
def test_a_linear_that_saw_other_tokens_is_named(shape: tuple[int, ...]) -> None:
    told = rf"up_proj saw {math.prod(shape)} tokens, the batch has [2, 3] = 6, not {list(shape)}: the constraint needs"
    with pytest.raises(ValueError, match=re.escape(told)):
        Samples(IDS.bool(), None, (2, 3)).gates("up_proj", torch.ones(*shape, 4))


@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_a_single_row_or_column_has_one_order(shape: tuple[int, int]) -> None:
    gates = torch.arange(8).view(2, 1, 4)
    for laid_out in (gates, gates.transpose(0, 1), gates.flatten(0, 1)):
        assert torch.equal(by_token(laid_out, shape), gates.flatten(0, 1))


def test_xlnet_puts_the_sequence_first() -> None:
    sizes = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8, "vocab_size": 8}
    base = XLNetLMHeadModel(XLNetConfig(**sizes))
    model = get_peft_model(base, LoraMoeConfig(lora_nums=2, target_modules=["layer_1"])).train()
    with pytest.raises(ValueError, match=r"ff\.layer_1 saw 6 tokens, the batch has \[2, 3\] = 6, not \[3, 2\]"):
        model(input_ids=IDS, labels=IDS, task_types=TYPES)
    assert torch.isfinite(model(input_ids=IDS[:1], labels=IDS[:1], task_types=TYPES[:1]).loss)


# --- Packed rows -----------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def packed(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """A call with rows of equal length, each given by the lengths of its samples."""
    positions = torch.tensor([[p for length in row for p in range(length)] for row in rows])
    return {"input_ids": torch.ones_like(positions), "position_ids": positions}


@given(lengths=LENGTHS, rows=st.integers(1, 3), flat=st.booleans())
def test_gates_of_packed_rows_are_summed_by_sample(lengths: list[int], rows: int, flat: bool) -> None:
    call, M, S = packed([lengths] * rows), rows * len(lengths), sum(lengths)
    samples = samples_of(Model(), call, torch.zeros(M, dtype=torch.long))
    assert samples.packed == (len(lengths) > 1)
    gates = torch.rand(rows, S, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(S))
    by_hand = torch.stack([sample.sum(0) for row in gates for sample in row.split(lengths)])
    got = importance(samples.gates("up_proj", gates.flatten(0, 1) if flat else gates), samples.mask_MS)
    torch.testing.assert_close(got, by_hand, rtol=1e-14, atol=0)
    assert samples.mask_MS.sum(-1).tolist() == lengths * rows


def test_rows_may_hold_different_numbers_of_samples() -> None:
    samples = samples_of(Model(), packed([[2, 3, 1], [6]]), torch.zeros(4, dtype=torch.long))
    assert samples.mask_MS.sum(-1).tolist() == [2, 3, 1, 6]
    assert samples.index_MS[3, :6].tolist() == list(range(6, 12))


def test_positions_of_one_row_serve_all() -> None:
    call = {"input_ids": torch.ones(2, 5, dtype=torch.long), "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    assert samples_of(Model(), call, torch.zeros(4, dtype=torch.long)).mask_MS.sum(-1).tolist() == [2, 3, 2, 3]


def test_types_and_restarts_that_do_not_go_together() -> None:
    with pytest.raises(
        ValueError, match=r"got 3 types, while position_ids begin 2 times in the B=1 rows of S=5 tokens"
    ):
        samples_of(Model(), packed([[2, 3]]), torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("name", ["attention_mask", "past_key_values"])
def test_what_would_let_packed_samples_see_each_other(name: str) -> None:
    call = {**packed([[2, 3]]), name: torch.ones(1, 5)}
    with pytest.raises(
        ValueError, match=f"need {name}=None: with it, transformers would let the samples see each other"
    ):
        samples_of(Model(), call, TYPES)


def test_flash_attention_packs_one_row() -> None:
    model = Model()
    model.config._attn_implementation = "flash_attention_2"
    assert samples_of(model, packed([[2, 3]]), TYPES).packed
    with pytest.raises(ValueError, match="flash_attention_2 tells packed samples apart in a single row only; got B=2"):
        samples_of(model, packed([[2, 3]] * 2), torch.tensor([0, 1, 0, 1]))


def test_a_packed_row_with_one_type() -> None:
    with pytest.raises(
        ValueError, match=r"position_ids restart within a row, so that it holds several samples, but .* 1"
    ):
        samples_of(Model(), packed([[2, 3]]), torch.tensor([0]))
    assert not samples_of(Model(), packed([[5]]), torch.tensor([0])).packed
