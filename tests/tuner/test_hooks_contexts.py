"""Forward passes in threads, within each other, and that fail; the constraint in outputs of every kind."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from loramoe import balance_loss, collect_aux_loss, last_balance
from loramoe.tuner.forward_pass import thread_state
from loramoe.tuner.hooks import _takes_use_cache
from tests.constrained import batch, llama, without

IDS = torch.arange(12).reshape(3, 4)
TYPES = torch.tensor([0, 1, 1])
PLAIN = {"input_ids": IDS, "labels": IDS}
BATCH = {**PLAIN, "task_types": TYPES}
pytestmark = pytest.mark.filterwarnings("ignore:adapter 'default' has blc_weight")


@dataclass(frozen=True)
class Output:
    loss: Tensor
    logits: Tensor


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda loss, logits: (loss, logits),
    "tensor": lambda loss, logits: loss,
    "dataclass": Output,
    "dict": lambda loss, logits: {"loss": loss, "logits": logits},
}


class Toy(nn.Module):
    """Two linear layers between tokens and logits, and something to do between the two."""

    def __init__(self, kind: str = "dict", between: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.kind, self.between = kind, between
        self.embedding = nn.Embedding(16, 8)
        self.lin0, self.lin1 = nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, position_ids: object = None) -> Any:
        x = self.lin0(self.embedding(input_ids))
        self.between()
        logits = self.lin1(x)
        if labels is None:
            return (logits,)
        return KINDS[self.kind](nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


def toy(*args: Any) -> Any:
    torch.manual_seed(0)
    options = {"target_modules": ["lin0", "lin1"], "lora_dropout": 0.0, "init_lora_weights": False}
    return get_peft_model(Toy(*args), LoraMoeConfig(lora_nums=3, r=2, blc_weight=2.0, **options))


def loss_of(outputs: Any) -> Tensor:
    if isinstance(outputs, dict):
        return outputs["loss"]
    return outputs[0] if isinstance(outputs, tuple) else getattr(outputs, "loss", outputs)


def test_threads_share_a_model_with_task_types(adapted: Callable[..., Any]) -> None:
    model = adapted()
    ids = torch.arange(3, 23).reshape(2, 10)
    batches = [BATCH, {"input_ids": ids, "labels": ids, "task_types": torch.tensor([1, 0])}]
    wanted = [model(**batch).loss.item() for batch in batches]
    together = Barrier(len(batches))

    def losses(batch: dict[str, Tensor]) -> set[float]:
        together.wait()
        return {model(**batch).loss.item() for _ in range(30)}

    with ThreadPoolExecutor(len(batches)) as pool:
        assert list(pool.map(losses, batches)) == [{loss} for loss in wanted]
    assert not thread_state.passes


def test_a_model_called_within_another_has_a_pass_of_its_own() -> None:
    inner, seen = toy(), []
    outer = toy("dict", lambda: seen.append(loss_of(inner(IDS[:2], IDS[:2], task_types=TYPES[:2]))))
    alone = loss_of(inner(IDS[:2], IDS[:2], task_types=TYPES[:2]))
    assert torch.equal(loss_of(outer(**BATCH)), loss_of(toy()(**BATCH)))
    assert torch.equal(seen[0], alone)
    for model, samples in ((inner, 2), (outer, 3)):
        assert last_balance(model).layers == ("lin0", "lin1")
        assert last_balance(model).importance_LME.shape == (2, samples, 3)


def test_a_nested_call_that_fails_leaves_the_outer_pass_open() -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("before the pass is open")

    def attempt() -> None:
        with pytest.raises(RuntimeError, match="before the pass"):
            inner(**BATCH)

    inner, outer = toy(), toy("dict", attempt)
    inner.get_base_model().register_forward_pre_hook(fail, prepend=True)
    assert torch.equal(loss_of(outer(**BATCH)), loss_of(toy()(**BATCH)))


def test_a_forward_that_fails_keeps_no_gates() -> None:
    kept: list[Any] = []
    model = toy("dict", lambda: 1 / 0)
    experts = model.get_base_model().lin0.loramoe_experts["default"]
    experts.register_forward_hook(lambda _, args, output: kept.extend(map(weakref.ref, output)))
    with contextlib.suppress(ZeroDivisionError):  # pytest.raises would keep the frames
        model(**BATCH)
    gc.collect()
    assert [ref() for ref in kept] == [None, None]  # output and gates
    assert not thread_state.passes


@pytest.mark.parametrize("kind", KINDS)
def test_the_constraint_is_added_to_outputs_of_every_kind(kind: str) -> None:
    model = toy(kind)
    outputs = model(**BATCH)
    plain = model(**PLAIN)
    assert type(outputs) is type(plain)
    torch.testing.assert_close(loss_of(outputs), loss_of(plain) + 2.0 * last_balance(model).constraint)
    loss_of(outputs).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "router" in name)


def test_outputs_without_a_loss_are_refused() -> None:
    with pytest.raises(ValueError, match=r"without a loss, .* return_dict=True, .* use loramoe.collect_aux_loss\(\)"):
        toy()(IDS, task_types=TYPES)


def test_a_model_without_a_head_hands_the_constraint_over() -> None:
    config = LoraMoeConfig(lora_nums=4, lora_dropout=0.0, init_lora_weights=False, blc_weight=0.5)
    model = inject_adapter_in_model(config, LlamaModel(llama().config)).train()
    outputs = model(**without(batch(), "labels"))
    expected = 0.5 * last_balance(model).constraint
    # DDP and FSDP2 rebuild outputs by pytree, FSDP1 by their declared fields.
    for rebuilt in (outputs, tree_map(lambda x: x, outputs), dataclasses.replace(outputs)):
        assert isinstance(rebuilt, BaseModelOutputWithPast)
        torch.testing.assert_close(balance_loss(rebuilt, None).detach(), expected)
    assert "balance_loss" not in model.eval()(**without(batch(), "labels"))


def test_a_constraint_that_does_not_reach_the_loss_is_warned_of() -> None:
    model = llama()
    config = LoraMoeConfig(lora_nums=4, lora_dropout=0.0, init_lora_weights=False, blc_weight=0.5)
    inject_adapter_in_model(config, model.model).train()  # the head above it computes the loss without the constraint
    with pytest.warns(UserWarning, match=r"did not reach the loss.*loramoe\.balance_loss"):
        model.train()(**batch()).loss.backward()
    outputs = model.model(**without(batch(), "labels"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (outputs.last_hidden_state.sum() + balance_loss(outputs, None)).backward()


def test_a_row_of_several_samples_needs_no_argument_named_use_cache() -> None:
    model, positions = toy(), torch.tensor([[0, 1, 0, 1]])
    packed = {"input_ids": IDS[:1], "labels": IDS[:1], "task_types": TYPES[:2]}
    assert loss_of(model(**packed, position_ids=positions)).isfinite()
    assert last_balance(model).tokens_M.tolist() == [2, 2]


@pytest.mark.parametrize("open_signature", [False, True])
def test_use_cache_reaches_a_model_by_its_name_or_by_open_keywords(open_signature: bool) -> None:
    class Model(nn.Module):
        config = SimpleNamespace(use_cache=True)

        def forward(self, ids: Tensor) -> None: ...

    class Open(Model):
        def forward(self, ids: Tensor, **options: Any) -> None: ...

    assert _takes_use_cache(Open() if open_signature else Model()) == open_signature


def test_collect_aux_loss() -> None:
    model = toy()
    with collect_aux_loss() as collected:
        loss = loss_of(model(**BATCH))
        with collect_aux_loss() as inner:
            model(IDS, task_types=TYPES)
    assert torch.equal(loss, loss_of(model(**PLAIN)))
    assert (len(collected), len(inner)) == (1, 1)
    assert collected[0].requires_grad
    torch.testing.assert_close(collected[0].detach(), 2.0 * last_balance(model).constraint)
