"""Which tokens of a batch are real, and whose: as the constraint reads it from the model's call."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from loramoe.samples import by_name, by_sample, real_tokens


class Model(nn.Module):
    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = LlamaConfig(**config)

    def forward(self, input_ids: object, attention_mask: object = None, labels: object = None) -> None: ...


IDS, TYPES = torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])


def test_positional_arguments_get_their_names() -> None:
    assert by_name(Model(), (1, 2), {"labels": 3}) == {"input_ids": 1, "attention_mask": 2, "labels": 3}
    assert by_name(Model(), (), {"labels": 3}) == {"labels": 3}


def test_the_mask_says_which_tokens_are_real() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.equal(real_tokens(Model(), {"input_ids": IDS, "attention_mask": mask}, TYPES), mask.bool())


@pytest.mark.parametrize("call", [{"input_ids": IDS}, {"inputs_embeds": torch.ones(2, 3, 8), "input_ids": None}])
def test_without_a_mask_every_token_is_real(call: dict[str, torch.Tensor]) -> None:
    assert torch.equal(real_tokens(Model(), call, TYPES), torch.ones(2, 3, dtype=torch.bool))


def test_a_mask_that_covers_the_cache_too_is_cut_to_the_new_tokens() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    expected = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.equal(real_tokens(Model(), {"input_ids": IDS, "attention_mask": mask}, TYPES), expected)


def test_a_number_of_types_other_than_of_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="one type for each of the B=2 samples; got 3"):
        real_tokens(Model(), {"input_ids": IDS}, torch.tensor([0, 1, 0]))


def test_a_mask_of_pairs_is_refused() -> None:
    mask = torch.ones(2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\], .* got \[2, 1, 3, 3\]"):
        real_tokens(Model(), {"input_ids": IDS, "attention_mask": mask}, TYPES)


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Model is an encoder-decoder, .* Leave task_types out, and set blc_weight=0"):
        real_tokens(Model(is_encoder_decoder=True), {"input_ids": IDS}, TYPES)


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)])
def test_gates_come_out_by_sample(shape: tuple[int, ...]) -> None:
    gates = torch.arange(24).view(shape)
    assert torch.equal(by_sample("up_proj", gates, IDS.bool()), gates.view(2, 3, 4))


def test_a_linear_that_saw_other_tokens_is_named() -> None:
    with pytest.raises(ValueError, match=r"up_proj saw 5 tokens, the batch has \[2, 3\] = 6"):
        by_sample("up_proj", torch.ones(5, 4), IDS.bool())
