"""Batches whose samples have adapters of their own, as PEFT's LoRA serves them: each row as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor

from tests.conformance.small import Mlp, config, rows, seeded

Maker = Callable[..., Any]
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
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = call()
    model.set_adapter("default")
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
    ids=["same linear", "other linears", "overlapping", "modules to save", "options"],
)
def test_each_row_is_what_it_is_alone(one: Any, two: Any) -> None:
    model = pair(one, two)
    alone = each_alone(model, lambda: model(rows()))
    names = NAMES * 2
    mixed = model(rows(), adapter_names=names)
    torch.testing.assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(names)]))
    assert not torch.allclose(alone["default"], alone["other"], atol=1e-3)
    assert torch.equal(model(rows()), alone["default"])  # nothing is left behind


@pytest.fixture
def trio(two: Any) -> tuple[Any, Tensor]:
    """A language model with the adapters "default" and "other", and three prompts [3, 5]."""
    two.add_adapter("other", two.peft_config["two"])
    for name, parameter in two.named_parameters():
        if ".other." in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(9))
    return two.eval(), torch.arange(3, 18).reshape(3, 5)


@torch.no_grad()
def test_a_language_model(trio: tuple[Any, Tensor]) -> None:
    model, ids = trio
    alone = each_alone(model, lambda: model(ids).logits)
    mixed = model(input_ids=ids, adapter_names=NAMES).logits
    torch.testing.assert_close(mixed, torch.stack([alone[name][row] for row, name in enumerate(NAMES)]))


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams", "more beams"]
)
def test_generation(how: dict[str, int], trio: tuple[Any, Tensor]) -> None:
    model, ids = trio
    settings = {"input_ids": ids, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False, **how}
    copies = how.get("num_return_sequences", 1)
    alone = each_alone(model, lambda: model.generate(**settings))
    mixed = model.generate(**settings, adapter_names=NAMES)
    wanted = [alone[name][row * copies + copy] for row, name in enumerate(NAMES) for copy in range(copies)]
    assert torch.equal(mixed, torch.stack(wanted))


def test_disabling_comes_before_the_names() -> None:
    model = pair(config("lin0"), config("lin0"))
    with model.disable_adapter():
        assert torch.equal(model(rows(), adapter_names=NAMES * 2), model(rows()))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES, r"a name for each sample of the batch; got 3 names, and a batch of 6"),
        (NAMES * 3, "got 9 names, and a batch of 6"),
        ([], "got 0 names, and a batch of 6"),
        (["default"] * 5 + ["nobody"], r"\['default', 'other'\], or '__base__' for none; got \['nobody'\]. Load them"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: list[str], message: str) -> None:
    model = pair(config("lin0"), config("lin0"))
    with pytest.raises(ValueError, match=message):
        model(rows(), adapter_names=names)
    assert not [
        module for module in model.modules() if module._forward_pre_hooks and module is not model.get_base_model()
    ]


@pytest.mark.parametrize("call", ["__call__", "generate"])
def test_fewer_names_than_prompts_are_not_taken_for_beams(call: str, trio: tuple[Any, Tensor]) -> None:
    model, ids = trio
    with pytest.raises(ValueError, match=r"got 3 names, and a (batch of|module that is given) 6"):
        getattr(model, call)(input_ids=ids.repeat(2, 1), adapter_names=NAMES)


def test_training_is_refused() -> None:
    model = pair(config("lin0"), config("lin0")).train()
    with pytest.raises(
        ValueError, match=r"adapter_names mixes adapters in one batch, for evaluation alone. Call model"
    ):
        model(rows(), adapter_names=NAMES * 2)


def test_task_types_are_refused(trio: tuple[Any, Tensor]) -> None:
    model, ids = trio
    with pytest.raises(ValueError, match=r"constraint of one adapter, and adapter_names mixes several .* one of them"):
        model(input_ids=ids, adapter_names=NAMES, task_types=torch.tensor([0, 1, 0]))
