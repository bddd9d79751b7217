"""Every arm learns by the same loop."""

from __future__ import annotations

import pytest
import torch

from experiments.knowledge_forgetting.arms import ARMS, prepare, recipe_of
from experiments.knowledge_forgetting.train import Trained, train
from loramoe.training.packing import attend_by_sample
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale


def trained(name: str, rate: float = 1e-2, packing: bool = False, **changes) -> tuple[Trained, dict]:
    scale, recipe = MadeUpScale(), recipe_of(name, changes)
    scale.packing = packing
    base, tokenizer = scale.base()
    if packing:
        attend_by_sample(base)
    torch.manual_seed(0)
    model = prepare(base, ARMS[name].kind, recipe)
    result = train(model, tokenizer, scale.train_rows(160, 0), scale, recipe, rate)
    return result, scale.score(model, tokenizer, "test")


@pytest.mark.parametrize("name", [name for name in ARMS if name != "base"])
def test_rows_are_learnt(name: str):
    result, hits = trained(name, rate=1e-2 if name == "full" else 5e-2)
    assert result.steps == 20
    assert [step for step, _ in result.curve] == list(range(1, 21))
    assert result.curve[-1][1] < 0.6 * result.curve[0][1]
    assert hits["colours"].sum() >= 1


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
