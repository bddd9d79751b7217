"""An adapted model at work: generation, compilation, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loramoe import use_implementation
from tests.helpers import run_python, trainable

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


@pytest.fixture
def prompt(ids: Tensor) -> dict[str, Any]:
    """A batch of prompts, the second one padded on the left."""
    mask = torch.ones(2, 4, dtype=torch.long)
    mask[1, 0] = 0
    return {"input_ids": ids[:, :4] * mask, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}


@pytest.mark.parametrize("how", [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_generation_with_and_without_cache(
    how: dict[str, Any], adapted: Maker, tiny_llama: Maker, prompt: dict[str, Any]
) -> None:
    model = adapted()

    def generate(each: Any, **options: Any) -> Tensor:
        torch.manual_seed(0)
        made: Tensor = each.generate(**prompt, **{"do_sample": False, **how, **options})
        return made

    cached = generate(model)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, generate(model, use_cache=False))
    assert not torch.equal(cached, generate(tiny_llama()))
    with model.disable_adapter():
        assert torch.equal(generate(model), generate(tiny_llama()))


@pytest.fixture(params=["eager", "aot_eager"])
def backend(request: pytest.FixtureRequest) -> Any:
    """What torch.compile hands its graphs to (inductor, which builds C++ for minutes, has a test at the layer)."""
    torch.compiler.reset()
    yield request.param
    torch.compiler.reset()


@torch.no_grad()
def test_compiled_forward_in_one_graph(backend: str, adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_compiled_training_with_the_constraint(backend: str, adapted: Maker, ids: Tensor) -> None:
    model = adapted(lora_dropout=0).train()
    use_implementation(model, "eager")  # what a compiled model computes in any case
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    model(**batch).loss.backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):  # the second time nothing is traced
        model.zero_grad()
        loss = compiled(**batch).loss
        loss.backward()
    torch.testing.assert_close(loss, model(**batch).loss)
    assert eager.keys() == trainable(model)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, eager[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_after_a_training_forward(copied: Maker, adapted: Maker, ids: Tensor) -> None:
    model = adapted(lora_dropout=0).train()
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    loss = model(**batch).loss
    twin = copied(model)
    assert torch.equal(twin(**batch).loss, loss)
    twin.peft_config["default"].blc_weight = 0.0  # hooks of its own, on a configuration of its own
    assert twin(**batch).loss < model(**batch).loss == loss


@pytest.mark.slow
def test_a_pickled_model_opens_in_another_process(adapted: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"]).to(torch.bfloat16)
    torch.save((model, ids, model(ids).logits), tmp_path / "model.pt")
    script = """
    import torch
    model, ids, logits = torch.load("model.pt", weights_only=False)
    assert torch.equal(model(ids).logits, logits)
    print(model.peft_config["default"].peft_type.value)
    """
    assert run_python(script, tmp_path, path=str(Path(__file__).parents[2])).strip() == "LORAMOE"
