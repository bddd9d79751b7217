"""An adapted model at work: generation, half precision, compilation, copies."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraMoeConfig,
    get_peft_model,
)
from torch import Tensor, nn

from loramoe.hooks import last_balance
from tests.helpers import layers_of, trainable

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


# --- generation, dtypes, compilation, copies --------------------------------------------------------------------------


@pytest.fixture
def prompt(ids: Tensor) -> dict[str, Any]:
    """A batch of prompts, the second one padded on the left."""
    mask = torch.ones(2, 4, dtype=torch.long)
    mask[1, 0] = 0
    return {"input_ids": ids[:, :4] * mask, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}


def test_greedy_generation_with_and_without_cache(adapted: Maker, tiny_llama: Maker, prompt: dict[str, Any]) -> None:
    model = adapted()
    cached = model.generate(**prompt, do_sample=False)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, model.generate(**prompt, do_sample=False, use_cache=False))
    assert not torch.equal(cached, tiny_llama().generate(**prompt, do_sample=False))
    with model.disable_adapter():
        assert torch.equal(model.generate(**prompt, do_sample=False), tiny_llama().generate(**prompt, do_sample=False))


@pytest.mark.parametrize("how", [{"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_sampling_and_beams(how: dict[str, Any], adapted: Maker, prompt: dict[str, Any]) -> None:
    model = adapted()
    torch.manual_seed(0)
    once = model.generate(**prompt, **how)
    torch.manual_seed(0)
    assert torch.equal(once, model.generate(**prompt, **how, use_cache=False))
    assert once.shape == (2, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_half_precision(
    dtype: torch.dtype, autocast_adapter_dtype: bool, tiny_llama: Maker, perturb: Maker, ids: Tensor
) -> None:
    base = tiny_llama().to(dtype)
    config = LoraMoeConfig(lora_nums=3, r=2, lora_alpha=1, lora_dropout=0)
    model = perturb(get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype))
    adapter_dtype = torch.float32 if autocast_adapter_dtype else dtype
    assert {p.dtype for name, p in model.named_parameters() if "loramoe_" in name} == {adapter_dtype}
    output = model.train()(ids, labels=ids, task_types=TYPES)
    assert output.logits.dtype is dtype
    assert last_balance(model).constraint.dtype is torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if "loramoe_" in name)
    exact = copy.deepcopy(model).float().eval()(ids).logits
    assert (output.logits - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()


def test_gates_are_float32_under_autocast(adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, task_types=TYPES).loss
    loss.backward()
    assert last_balance(model).gate_TLE.dtype is torch.float32
    assert last_balance(model).constraint_L.dtype is torch.float32


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


def torch_copy(model: nn.Module) -> Any:
    """The model as torch.save and torch.load give it back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, torch_copy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "torch", "pickle"],
)
def test_copies_after_a_training_forward(copied: Maker, adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    model(ids, labels=ids, task_types=TYPES)
    assert all(layer.gates == {} and not layer.watched for layer in layers_of(model).values())
    twin = copied(model)
    assert torch.equal(twin.eval()(ids).logits, model.eval()(ids).logits)
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    twin.peft_config["default"].blc_weight = 0.0  # hooks of its own, on a configuration of its own
    with torch.random.fork_rng():
        torch.manual_seed(0)
        without = twin.train()(**batch).loss
        torch.manual_seed(0)
        assert model.train()(**batch).loss > without


@pytest.mark.slow
def test_a_pickled_model_opens_in_another_process(adapted: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted()
    torch.save((model, ids, model(ids).logits), tmp_path / "model.pt")
    script = (
        "import sys, torch; model, ids, logits = torch.load(sys.argv[1], weights_only=False); "
        "assert torch.equal(model(ids).logits, logits); print(model.peft_config['default'].peft_type.value)"
    )
    repository = str(Path(__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt")],
        env=os.environ | {"PYTHONPATH": repository},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "LORAMOE", ran.stderr
