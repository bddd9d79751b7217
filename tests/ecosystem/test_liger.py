"""Liger's kernels under a LoRAMoE adapter: losses and weights of a training are those of a plain loop without them.

Where there is no GPU, Triton's interpreter runs the kernels on the CPU. It has no `rsqrt`, so Liger's RMSNorm is off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.models.llama import modeling_llama

from loramoe.data import SftCollator
from tests.plain_loop import OrderedTrainer, assert_same_run, make_model, make_rows, plain_loop, settings

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or Triton's interpreter: TRITON_INTERPRET=1 before the start", allow_module_level=True)


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what Liger changes in transformers' module; makes the interpreter treat floats as the compiler does."""
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer(smoothing: float, tmp_path: Path) -> None:
    """`use_liger_kernel=True`; with label smoothing the Trainer computes the loss from logits, fused loss or not."""
    model, expected = make_model(), plain_loop(make_model(), make_rows(), 2, 2, smoothing)
    options = {"gradient_accumulation_steps": 2, "label_smoothing_factor": smoothing, "use_cpu": not ON_GPU}
    options |= {"use_liger_kernel": True, "liger_kernel_config": {"rms_norm": ON_GPU}}
    args = TrainingArguments(**settings(tmp_path, **options))
    assert_same_run(OrderedTrainer(model, args, train_dataset=make_rows(), data_collator=SftCollator(0)), expected)
    layer = model.get_base_model().model.layers[0]
    assert layer.mlp.forward.__module__.startswith("liger_kernel")
    rows = {name: value.to(model.device) for name, value in SftCollator(0)(make_rows()).items()}
    assert model.train()(**rows).logits is None, "Liger's fused loss did not run"
