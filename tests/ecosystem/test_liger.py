"""Liger's kernels under a LoRAMoE adapter: losses, gradients and constraint are those without them.

Where there is no GPU, Triton's interpreter runs the kernels (rotary embedding, SwiGLU, the fused loss) on the CPU; it
has no `rsqrt`, so Liger's RMSNorm, which touches nothing of an adapter, is left out there.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.models.llama import modeling_llama

from loramoe import last_balance
from loramoe.data import SftCollator
from loramoe.training import parse, run_sft
from tests.plain_loop import OrderedTrainer, assert_same_run, make_model, make_rows, plain_loop, settings, weights

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or Triton's interpreter: TRITON_INTERPRET=1 before the start", allow_module_level=True)
KERNELS = {"rms_norm": ON_GPU}
DEVICE = "cuda" if ON_GPU else "cpu"


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what Liger changes in transformers' module; has the interpreter treat floats as the compiler does."""
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    if not ON_GPU:
        import numpy
        from triton import language
        from triton.runtime import interpreter

        convert = interpreter._implicit_cvt

        def with_floats(value: Any) -> Any:
            if not isinstance(value, float):
                return convert(value)
            handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), language.float32)
            return language.tensor(handle, language.float32)

        monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)


def with_liger(model: Any) -> Any:
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model.get_base_model(), **KERNELS)
    return model


def test_loss_gradients_and_constraint() -> None:
    batch = {name: value.to(DEVICE) for name, value in SftCollator(0)(make_rows()).items()}
    model = make_model().to(DEVICE).train()
    expected = model(**batch, num_items_in_batch=torch.tensor(50, device=DEVICE))
    expected.loss.backward()
    gradients, balance = {name: p.grad for name, p in weights(model).items()}, last_balance(model)
    other = with_liger(make_model().to(DEVICE).train())
    outputs = other(**batch, num_items_in_batch=torch.tensor(50, device=DEVICE))
    outputs.loss.backward()
    assert outputs.logits is None, "Liger's fused loss did not run"
    mlp = other.get_base_model().model.layers[0].mlp
    assert mlp.forward.__module__.startswith("liger_kernel"), "Liger's SwiGLU did not run"
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=1e-5, atol=0)
    for name, p in weights(other).items():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last_balance(other).constraint, balance.constraint)


def test_the_constraint_is_in_the_loss() -> None:
    batch = {name: value.to(DEVICE) for name, value in SftCollator(0)(make_rows()).items()}
    model = with_liger(make_model().to(DEVICE).train())
    with_constraint = model(**batch).loss
    constraint = last_balance(model).constraint
    model.peft_config["default"].blc_weight = 0.0
    torch.testing.assert_close(with_constraint - model(**batch).loss, 0.5 * constraint, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer(smoothing: float, tmp_path: Path) -> None:
    """`use_liger_kernel=True`; with label smoothing the Trainer computes the loss from logits, fused loss or not."""
    model = make_model()
    expected = plain_loop(copy.deepcopy(model), make_rows(), 2, 2, smoothing)
    options = {"gradient_accumulation_steps": 2, "label_smoothing_factor": smoothing, "use_cpu": not ON_GPU}
    options |= {"use_liger_kernel": True, "liger_kernel_config": KERNELS}
    args = TrainingArguments(**settings(tmp_path, **options))
    assert_same_run(OrderedTrainer(model, args, train_dataset=make_rows(), data_collator=SftCollator(0)), expected)


@pytest.mark.usefixtures("own_dataset_cache")
def test_train_py(tiny_task: Any, tmp_path: Path) -> None:
    """The flag of `train.py`: evaluation, constraint and expert shares are those without it."""
    flags = {"lora_dropout": 0.0, "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": str(not ON_GPU)}
    expected = run_sft(parse(tiny_task.flags(tmp_path / "without", **flags)))
    arguments = parse(tiny_task.flags(tmp_path / "with", **flags, use_liger_kernel="true"))
    arguments[2].liger_kernel_config = KERNELS
    summary = run_sft(arguments)
    assert summary.keys() == expected.keys()
    for moment in expected:
        for name, value in expected[moment].items():
            assert summary[moment][name] == pytest.approx(value, rel=1e-4), (moment, name)
