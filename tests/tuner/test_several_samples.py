"""Rows of several samples give what padded rows give: loss, gradients, constraint, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import loramoe
from loramoe import BalanceStats
from loramoe.data import PackedCollator, SftCollator
from loramoe.training.packing import BY_SAMPLE, attend_by_sample
from tests.constrained import adapted, llama
from tests.plain_loop import word_tokenizer
from tests.tuner.test_architectures import ARCHITECTURES

ATTENTION = ("eager", "sdpa", BY_SAMPLE)
# transformers makes no mask of packed samples for opt; `attention_by_sample` does without (see test_packing.py).
CASES = [(name, attention) for name in ARCHITECTURES for attention in ATTENTION if name != "opt"] + [("opt", BY_SAMPLE)]
LENGTHS = (7, 2, 9, 4)


def model_of(architecture: str, attention: str, **config: Any) -> Any:
    """A tiny adapted model in training mode, float64."""
    torch.manual_seed(0)
    sizes = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture][0])
    first = "eager" if attention == "eager" else "sdpa"
    base = AutoModelForCausalLM.from_config(sizes, attn_implementation=first).double()
    if attention == BY_SAMPLE:
        attend_by_sample(base)
    return adapted(base, r=2, blc_weight=0.5, **config).double()


def samples(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": list(row), "task_types": m % 2} for m, row in enumerate(ids)]


def step(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], BalanceStats]:
    """Loss, gradients of the adapter, and what the constraint saw."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), gradients, loramoe.last_balance(model)


def assert_same(packed: Any, padded: Any, rtol: float, atol: float) -> None:
    torch.testing.assert_close(packed[0], padded[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(packed[1], padded[1], rtol=rtol, atol=atol)
    for name in ("constraint", "constraint_L", "gate_TLE", "tokens_T"):
        torch.testing.assert_close(getattr(packed[2], name), getattr(padded[2], name), rtol=rtol, atol=atol)
    assert packed[2].task_types == padded[2].task_types


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_loss_gradients_constraint_and_shares(architecture: str, attention: str) -> None:
    model, rows = model_of(architecture, attention), samples()
    padded, packed = step(model, SftCollator(0)(rows)), step(model, PackedCollator()(rows))
    assert padded[2].constraint > 0
    # The gates are float32 whatever the model (the constraint is then too): their rounding is what is left.
    assert_same(packed, padded, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ["sdpa", BY_SAMPLE])  # eager attention rounds to float32
def test_to_the_last_digits_of_float64(attention: str) -> None:
    model, rows = model_of("llama", attention).eval(), samples()
    padded, packed = SftCollator(0)(rows), PackedCollator()(rows)
    del padded["task_types"], packed["task_types"]
    real = padded["attention_mask"].bool()
    with model.disable_adapter():  # whose gates are float32
        torch.testing.assert_close(model(**packed).logits[0], model(**padded).logits[real], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("attention", ATTENTION)
def test_in_float32(attention: str) -> None:
    model, rows = model_of("llama", attention).float(), samples()
    assert_same(step(model, PackedCollator()(rows)), step(model, SftCollator(0)(rows)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_no_sample_sees_another(architecture: str, attention: str) -> None:
    model, rows = model_of(architecture, attention).eval(), samples()
    others = samples(seed=1)
    for changed in range(len(LENGTHS)):
        mixed = [*rows[:changed], others[changed], *rows[changed + 1 :]]
        before, after = (model(**PackedCollator()(batch)).logits[0].split(LENGTHS) for batch in (rows, mixed))
        for m in range(len(LENGTHS)):
            assert torch.equal(before[m], after[m]) == (m != changed)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_random_lengths(lengths: list[int], seed: int) -> None:
    model, rows = model_of("llama", BY_SAMPLE), samples(tuple(lengths), seed)
    assert_same(step(model, PackedCollator()(rows)), step(model, SftCollator(0)(rows)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_several_packed_rows(attention: str) -> None:
    """Two rows of two samples each, as other collators make them."""
    model, rows = model_of("llama", attention), samples((7, 2, 4, 5))
    one = PackedCollator()(rows)
    two = {name: one[name].view(2, 9) for name in ("input_ids", "position_ids", "labels")}
    assert_same(step(model, {**two, "task_types": one["task_types"]}), step(model, one), rtol=1e-5, atol=1e-7)


def test_embeddings_in_place_of_ids() -> None:
    model, batch = model_of("llama", "sdpa"), PackedCollator()(samples())
    embedded = {name: value for name, value in batch.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(batch["input_ids"])
    assert_same(step(model, {**embedded, "inputs_embeds": embeds}), step(model, batch), rtol=1e-6, atol=1e-9)


def test_a_forgotten_cache_is_no_leak() -> None:
    """By default transformers makes a cache, and with it takes a packed row for one text."""
    model, batch = model_of("llama", "sdpa"), PackedCollator()(samples())
    expected = model(**batch).loss
    assert model.config.use_cache
    del batch["use_cache"]
    assert torch.equal(model(**batch).loss, expected)


def test_gradient_checkpointing() -> None:
    model, batch = model_of("llama", BY_SAMPLE), PackedCollator()(samples())
    expected = step(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(step(model, batch), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("collator", [SftCollator(0), PackedCollator()], ids=["padded", "packed"])
def test_the_share_of_a_step(collator: Any, tmp_path: Path) -> None:
    """Of two micro-batches with as many labels, however many of them the Trainer counts, each has half."""
    model, batch = model_of("llama", "sdpa"), collator(samples())
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    batch["num_items_in_batch"] = trainer._get_num_items_in_batch([batch] * 2, torch.device("cpu"))
    with_it = model(**batch).loss
    constraint = loramoe.last_balance(model).constraint
    model.peft_config["default"].blc_weight = 0.0
    torch.testing.assert_close(
        with_it - model(**batch).loss, 0.5 * constraint / 2, rtol=1e-5, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trl_takes_packed_batches(accumulation: int, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    weights = []
    for collator in (SftCollator(0), PackedCollator()):
        model = model_of("llama", "sdpa").float()
        args = trl.SFTConfig(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        rows = Dataset.from_list(samples((7, 2, 9, 4, 5, 3, 8, 2, 6, 6, 3, 9)))
        trainer = trl.SFTTrainer(
            model, args, train_dataset=rows, data_collator=collator, processing_class=word_tokenizer()
        )
        trainer.train()
        weights.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)


def test_a_packed_batch_has_a_type_for_each_sample() -> None:
    model, batch = adapted(llama()), PackedCollator()(samples())
    model(**batch)
    assert loramoe.last_balance(model).tokens_T.tolist() == [7 + 9, 2 + 4]
    batch["task_types"] = batch["task_types"][:3]
    with pytest.raises(ValueError, match="got 3 types, while position_ids start 4 samples"):
        model(**batch)
