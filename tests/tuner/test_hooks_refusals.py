"""What the constraint refuses, naming value, expectation and fix, and what it tells once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertForMaskedLM

from tests.constrained import VOCAB, B, S, adapted, batch, llama, without


def test_an_unknown_task_type_is_named() -> None:
    inputs = {**batch(), "task_types": torch.tensor([0, 3, 1])}
    with pytest.raises(ValueError, match="task_types has 3, which is the type of no expert"):
        adapted()(**inputs)


def test_a_wrong_number_of_task_types_is_refused() -> None:
    inputs = {**batch(), "task_types": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="one type for each of the B=3 samples; got 2"):
        adapted()(**inputs)


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
    told = rf"task_types must be one integer for each sample, .*; got {got}\. Have the collator make it"
    with pytest.raises(ValueError, match=told):
        adapted()(**{**batch(), "task_types": task_types})


def test_a_mask_that_hides_the_padding_is_refused() -> None:
    inputs = {**batch(), "attention_mask": torch.ones(B, 1, S, S, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"attention_mask must be \[B, S\].* got \[3, 1, 8, 8\]"):
        adapted()(**inputs)


def test_a_linear_that_sees_other_tokens_is_named() -> None:
    model = adapted(target_modules=["gate_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"lm_head saw 3 tokens, the batch has \[3, 8\] = 24"):
        model(**without(batch(), "labels"), logits_to_keep=1)


def test_layers_that_are_shared_are_refused() -> None:
    sizes = {
        "embedding_size": 8,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": VOCAB,
    }
    base = AlbertForMaskedLM(AlbertConfig(**sizes, num_hidden_layers=2))
    model = adapted(base, task_type=None, target_modules=["ffn"])
    told = r"albert_layers\.0\.ffn was called twice in one forward pass, .* or give no task_types and set blc_weight=0"
    for _ in "12":
        with pytest.raises(ValueError, match=told):
            model(**batch())
    model.peft_config["default"].blc_weight = 0.0
    model(**without(batch(), "task_types")).loss.backward()


def test_encoder_decoders_are_refused() -> None:
    base = llama()
    base.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="LlamaForCausalLM is an encoder-decoder"):
        adapted(base)(**batch())


def test_a_training_batch_without_task_types_is_told_once() -> None:
    model, inputs = adapted(), without(batch(), "task_types")
    with pytest.warns(
        UserWarning, match=r"'default' has blc_weight=0.1, but this training batch came without task_types"
    ):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)


@pytest.mark.parametrize("call", [{"num_items_in_batch": 9}, {"labels": batch()["labels"]}])
def test_whoever_computes_the_loss_is_told_too(call: dict[str, Any]) -> None:
    inputs = without(batch(), "task_types", "labels")
    with pytest.warns(UserWarning, match="this training batch came without task_types"):
        adapted()(**inputs, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted().eval()(**inputs, **call)
        with torch.no_grad():
            adapted()(**inputs, **call)
        adapted().generate(input_ids=inputs["input_ids"], max_new_tokens=2)


def test_labels_by_position_are_seen() -> None:
    base, inputs = llama(), batch()
    adapted(base)
    with pytest.warns(UserWarning, match="this training batch came without task_types"):
        base(inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"])


def test_nothing_is_told_where_no_constraint_is_due() -> None:
    inputs = without(batch(), "task_types")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted(blc_weight=0.0)(**inputs)
        adapted().eval()(**inputs)
        with (model := adapted()).disable_adapter():
            model(**inputs)
        adapted()(**without(inputs, "labels"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused() -> None:
    model = adapted()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match=r"Set gradient_checkpointing_kwargs=\{'use_reentrant': False\}"):
        model(**batch())


def test_replicas_of_data_parallel_are_refused() -> None:
    base = llama()
    model = adapted(base)
    base._is_replica = True  # as nn.DataParallel marks the copies that it runs in threads
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel splits a batch among threads"):
        model(**batch())
