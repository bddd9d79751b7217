"""On a GPU: the same constraint and the same gradients as on the CPU, also under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import loramoe
from tests.constrained import adapted, batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on(device: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def test_loss_and_gradients_equal_the_cpus() -> None:
    model, inputs = adapted(blc_weight=0.5), batch()
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.cuda()(**on("cuda", inputs)).loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad.cpu(), expected[name], rtol=1e-3, atol=1e-5)


def test_autocast_rounds_neither_gates_nor_constraint() -> None:
    model, inputs = adapted(target_modules=["layers.0.mlp.gate_proj"]), batch()
    model(**inputs)
    expected = loramoe.last_balance(model)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model.cuda()(**on("cuda", inputs))
    got = loramoe.last_balance(model)
    assert got.gate_TLE.dtype == got.constraint.dtype == torch.float32
    # What comes before the linear is rounded by autocast, so the two agree to bfloat16's three digits.
    torch.testing.assert_close(got.gate_TLE.cpu(), expected.gate_TLE, rtol=2e-2, atol=2e-3)


def test_task_types_may_stay_on_the_cpu() -> None:
    model, inputs = adapted().cuda(), batch()
    moved = on("cuda", inputs)
    torch.testing.assert_close(model(**{**moved, "task_types": inputs["task_types"]}).loss, model(**moved).loss)
