"""Every arm learns by the same loop."""

from __future__ import annotations

import random

import pytest
import torch

from experiments.knowledge_forgetting.arms import ARMS, prepare, recipe_of
from experiments.knowledge_forgetting.train import Trained, by_length, train
from loramoe.training.model import enable_varlen_attention
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale


def trained(name: str, rate: float = 1e-2, packing: bool = False, **changes) -> tuple[Trained, dict]:
    scale, recipe = MadeUpScale(), recipe_of(name, changes)
    scale.packing = packing
    base, tokenizer = scale.base()
    if packing:
        enable_varlen_attention(base)
    torch.manual_seed(0)
    model = prepare(base, ARMS[name].kind, recipe)
    result = train(model, tokenizer, scale.train_rows(320, 0), scale, recipe, rate)
    return result, scale.score(model, tokenizer, "test")


@pytest.mark.parametrize("name", [name for name in ARMS if name != "base"])
def test_rows_are_learnt(name: str):
    result, _ = trained(name, rate=1e-2 if name == "full" else 2e-2)
    assert result.steps == 40
    assert [step for step, _ in result.curve] == list(range(2, 41, 2))
    assert result.curve[-1][1] < 0.75 * result.curve[0][1]


def test_what_is_learnt_is_answered():
    hits = trained("full")[1]
    assert hits["colours"].sum() >= 2, "one colour for everything is right once"


@pytest.mark.parametrize("name", ["full", "lora_mlp", "loramoe_paper"])
def test_packed_rows_are_learnt_as_padded_ones(name: str):
    padded, packed = (trained(name, packing=packing, lora_dropout=0.0)[0].curve for packing in (False, True))
    assert [loss for _, loss in packed] == pytest.approx([loss for _, loss in padded], rel=1e-4)


def test_a_run_can_be_repeated():
    assert trained("loramoe_paper")[0].curve == trained("loramoe_paper")[0].curve


def test_the_curve_is_of_the_language_model_alone():
    loss, other = trained("loramoe_free")[0].curve[0][1], trained("loramoe_paper", blc_weight=5.0)[0].curve[0][1]
    assert loss == pytest.approx(other, rel=1e-5)


def test_shares_are_of_the_last_tenth_of_the_steps():
    result, _ = trained("loramoe_paper")
    assert result.shares is not None
    assert result.shares.task_types == (0, 1)
    assert trained("lora_mlp")[0].shares is None


def test_rows_of_one_length_stand_together_and_none_is_lost():
    rng = random.Random(1)
    rows = [{"input_ids": [0] * rng.randrange(1, 100), "number": number} for number in range(130)]
    batches = by_length(rows, batch_size=4)
    assert sorted(row["number"] for batch in batches for row in batch) == list(range(130))
    lengths = [[len(row["input_ids"]) for row in batch] for batch in batches]
    assert sum(max(its) - min(its) for its in lengths) / len(lengths) < 15, "rows as they come spread over 60"
    assert all(row["number"] // 32 == place // 8 for place, batch in enumerate(batches) for row in batch)
    assert [min(its) for its in lengths[:8]] != sorted(min(its) for its in lengths[:8])


def test_a_row_that_is_too_long_is_refused():
    scale, recipe = MadeUpScale(), recipe_of("full", {})
    scale.max_seq_length = 3
    base, tokenizer = scale.base()
    with pytest.raises(ValueError, match=r"a row is longer than max_seq_length=3: .*Leave such rows out\."):
        train(base, tokenizer, scale.train_rows(8, 0), scale, recipe, 1e-3)
