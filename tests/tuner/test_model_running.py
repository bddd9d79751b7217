"""An adapted model at work: generation, compilation, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from loramoe import last_balance
from tests import constrained
from tests.helpers import run_python

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


@pytest.fixture
def prompt(ids: Tensor) -> dict[str, Any]:
    """A batch of prompts, the second one padded on the left."""
    mask = torch.ones(2, 4, dtype=torch.long)
    mask[1, 0] = 0
    return {"input_ids": ids[:, :4] * mask, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}


@pytest.mark.parametrize("how", [{}, {"num_beams": 2, "do_sample": True}])
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


@pytest.mark.skipif(Version(torch.__version__).release < (2, 13), reason="torch 2.11 breaks the graph in each layer")
@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_compiled_training_step_is_one_graph(layers: int) -> None:
    """Inductor, which builds C++ for minutes, has a test at the layer."""
    model = constrained.adapted(constrained.llama(num_hidden_layers=layers), blc_weight=0.5)
    inputs = constrained.batch()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    made = []
    for call in (model, compiled, compiled):  # the second time nothing is traced
        model.zero_grad()
        loss = call(**inputs).loss
        loss.backward()
        made.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made[2], made[0], rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1
    assert last_balance(model).task_types == (0, 1)


@pytest.mark.slow
def test_a_break_of_the_graph_loses_no_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = constrained.adapted(blc_weight=0.5), constrained.batch()
    expected = model(**inputs).loss
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")

    def broken(x: Tensor, forward: Any = mlp.forward) -> Any:
        torch._dynamo.graph_break()
        y = forward(x)
        torch._dynamo.graph_break()
        return y

    monkeypatch.setattr(mlp, "forward", broken)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager")(**inputs).loss, expected)


def test_a_compiled_model_refuses_an_unknown_type() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(constrained.adapted(), backend="eager")
    with pytest.raises(RuntimeError, match="task_types do not fit the samples or the experts"):
        compiled(**{**constrained.batch(), "task_types": torch.tensor([0, 3, 1])})


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
