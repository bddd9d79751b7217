"""Batches whose samples have adapters of their own, as in PEFT's LoRA: each sample as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from tests.conformance.small import Mlp, config, rows, seeded

NAMES = ["__base__", "default", "other"]


def pair(one: Any, two: Any) -> Any:
    torch.manual_seed(5)
    model = get_peft_model(seeded(Mlp), one)
    model.add_adapter("other", two)
    return model.eval()


def each_alone(model: Any, call: Callable[[], Tensor]) -> dict[str, Tensor]:
    """What the whole batch gives with each adapter, and with none."""
    with model.disable_adapter():
        alone = {"__base__": call()}
    for name in ("other", "default"):
        model.set_adapter(name)
        alone[name] = call()
    return alone


@torch.no_grad()
@pytest.mark.parametrize(
    ("one", "two"),
    [
        (config("lin0"), config("lin0", lora_nums=5, r=4)),
        (config("lin0"), config("lin1")),
        (config("lin0"), config("lin0", "lin1")),
        (config("lin0", modules_to_save=["lin1"]), config("lin0", modules_to_save=["lin1"])),
        (config("lin0", lora_dropout=0.5), config("lin0", use_rslora=True)),
    ],
    ids=["same layer", "other layers", "overlapping", "modules_to_save", "options"],
)
def test_each_sample_as_if_alone(one: Any, two: Any) -> None:
    model = pair(one, two)
    alone = each_alone(model, lambda: model(rows()))
    names = NAMES * 2
    mixed = model(rows(), adapter_names=names)
    torch.testing.assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(names)]))
    assert not torch.allclose(alone["default"], alone["other"], atol=1e-3)
    assert torch.equal(model(rows()), alone["default"])  # nothing is left behind
    with model.disable_adapter():
        assert torch.equal(model(rows(), adapter_names=names), alone["__base__"])


@pytest.fixture
def language_model(two: Any) -> tuple[Any, Tensor]:
    """A language model with the adapters "default" and "other", and three prompts [3, 5]."""
    two.add_adapter("other", two.peft_config["two"])
    for name, parameter in two.named_parameters():
        if ".other." in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(9))
    return two.eval(), torch.arange(3, 18).reshape(3, 5)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_generation(how: dict[str, int], language_model: tuple[Any, Tensor]) -> None:
    model, ids = language_model
    settings = {"input_ids": ids, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False, **how}
    copies = how.get("num_return_sequences", 1)
    alone = each_alone(model, lambda: model.generate(**settings))
    mixed = model.generate(**settings, adapter_names=NAMES)
    wanted = [alone[name][row * copies + copy] for row, name in enumerate(NAMES) for copy in range(copies)]
    assert torch.equal(mixed, torch.stack(wanted))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES, "got 3 names, and a batch of 6"),
        (NAMES * 3, "got 9 names, and a batch of 6"),
        ([], "got 0 names, and a batch of 6"),
        (["default"] * 5 + ["nobody"], r"got \['nobody'\]"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    model = pair(config("lin0"), config("lin0"))
    with pytest.raises(ValueError, match=message):
        model(rows(), adapter_names=names)
    assert [m for m in model.modules() if m._forward_pre_hooks] == [model.get_base_model()]


@pytest.mark.parametrize("call", ["__call__", "generate"])
def test_fewer_names_than_prompts_are_not_taken_for_beams(call: str, language_model: tuple[Any, Tensor]) -> None:
    model, ids = language_model
    with pytest.raises(ValueError, match=r"got 3 names, and a (batch of|module that is given) 6"):
        getattr(model, call)(input_ids=ids.repeat(2, 1), adapter_names=NAMES)


def test_a_model_that_flattens_samples_into_tokens_is_refused() -> None:
    class Flattening(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1))

    model = get_peft_model(seeded(Flattening), config()).eval()
    with pytest.raises(ValueError, match="given 6 rows"):
        model(rows().view(2, 3, 10), adapter_names=["default", "__base__"])


def test_training_and_task_types_are_refused(language_model: tuple[Any, Tensor]) -> None:
    model, ids = language_model
    with pytest.raises(ValueError, match="without task_types"):
        model(input_ids=ids, adapter_names=NAMES, task_types=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="for evaluation alone"):
        model.train()(input_ids=ids, adapter_names=NAMES)
