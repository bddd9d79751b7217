"""Base models in 4 and 8 bits by bitsandbytes, on the CPU: trained by `train.py`, saved, loaded, generated from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe import loading
from loramoe.training import parse, run_sft
from loramoe.training.model import adapter_config, add_adapter, load_base
from tests.helpers import layers_of
from tests.plain_loop import weights

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
KINDS = {4: "Linear4bit", 8: "Linear8bitLt"}
IDS = torch.arange(5, 25).reshape(2, 10)
BATCH = {"input_ids": IDS, "labels": IDS, "task_types": torch.tensor([0, 1])}


@pytest.fixture
def base(tiny_task: Any, tmp_path: Path) -> Path:
    """A base model whose widths are multiples of 64, as bitsandbytes on a CPU needs them."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**size, **tokens)).save_pretrained(tmp_path / "base")
    for file in tiny_task.base.glob("*token*"):
        shutil.copy(file, tmp_path / "base")
    return tmp_path / "base"


def load(tiny_task: Any, base: Path, out: Path, **flags: object) -> Any:
    """What `train.py` would train with these flags."""
    arguments, _, args = parse(tiny_task.flags(out, model_name_or_path=base, **flags))
    return add_adapter(load_base(arguments, args), arguments, adapter_config(arguments))


@pytest.mark.slow
@pytest.mark.usefixtures("own_dataset_cache")
@pytest.mark.parametrize(("bits", "double_quant"), [(4, False), (8, True)])
def test_trained_saved_and_loaded(bits: int, double_quant: bool, base: Path, tiny_task: Any, tmp_path: Path) -> None:
    flags = {"load_in_kbits": bits, "double_quant": double_quant}
    summary = run_sft(parse(tiny_task.flags(tmp_path / "out", model_name_or_path=base, **flags, max_steps=12)))
    assert summary["after"]["loss"] < summary["before"]["loss"] - 0.1
    model = load(tiny_task, base, tmp_path, **flags, peft_path=tmp_path / "out" / "sft_lora_model").eval()
    assert {type(layer.base_layer).__name__ for layer in layers_of(model).values()} == {KINDS[bits]}
    with torch.inference_mode(), model.disable_adapter():
        plain = model(input_ids=IDS).logits
    assert not torch.equal(model(input_ids=IDS).logits, plain)
    assert model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False).shape[1] > IDS.shape[1]


def test_gradients_are_those_on_the_float_base_model(base: Path, tiny_task: Any, tmp_path: Path) -> None:
    """Also after an evaluation, in which bitsandbytes would pack the weights for a kernel that has no backward."""
    from bitsandbytes.functional import dequantize_4bit

    model = load(tiny_task, base, tmp_path, load_in_kbits=4, lora_dropout=0)
    for p in weights(model).values():
        torch.nn.init.normal_(p, std=0.1)
    reference = load(tiny_task, base, tmp_path, lora_dropout=0).train()
    with torch.no_grad():
        model.eval()(**BATCH)
        for name, module in model.named_modules():
            if type(module).__name__ == "Linear4bit":
                float_weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                reference.get_submodule(name).weight.copy_(float_weight)
        reference.load_state_dict(weights(model), strict=False)
    for each in (model.train(), reference):
        each(**BATCH).loss.backward()
    for name, p in weights(reference).items():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad, rtol=1e-3, atol=1e-5)


def test_a_base_model_of_any_width_answers(tiny_task: Any) -> None:
    """Those of the tiny task are 32 and 48: packed, bitsandbytes would refuse them."""
    arguments = loading.BaseArguments(str(tiny_task.base), load_in_kbits=4)
    assert loading.load_base(arguments, "cpu")(input_ids=IDS).logits.isfinite().all()


def test_a_base_model_packed_for_inference_is_not_trained(base: Path, tiny_task: Any, tmp_path: Path) -> None:
    arguments, _, args = parse(tiny_task.flags(tmp_path, model_name_or_path=base, load_in_kbits=4))
    quantised = load_base(arguments, args)
    linear = quantised.get_submodule("model.layers.0.mlp.up_proj")
    linear.weight.quant_state.packing_format_for_cpu = True  # as after a forward on a CPU with AVX512-BF16
    with pytest.raises(ValueError, match=r"mlp\.up_proj"):
        add_adapter(quantised, arguments, adapter_config(arguments))
