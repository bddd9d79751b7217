"""Formulas of memory against real tensors: parameters, states of a real optimizer, shards."""

from __future__ import annotations

import pytest
import torch
from accelerate import init_empty_weights
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe import LoraMoeConfig
from loramoe.training.launch.memory import Parameters, Plan, memory_per_gpu

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = LlamaConfig(**SIZES, head_dim=16, num_key_value_heads=2, vocab_size=64)
OPTIONS = {"r": 2, "lora_nums": 4, "blc_weight": 0, "task_type": "CAUSAL_LM"}


def test_parameters_and_what_training_an_adapter_holds():
    model = get_peft_model(LlamaForCausalLM(CONFIG), LoraMoeConfig(**OPTIONS))
    with init_empty_weights(include_buffers=False):
        empty = LlamaForCausalLM(CONFIG)
    count = Parameters.of(model)
    assert count == Parameters.of(get_peft_model(empty, LoraMoeConfig(**OPTIONS)))
    assert count.quantised == 2 * (32 * (2 * 64 + 2 * 32) + 3 * 32 * 48)  # attention and MLP
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.arange(3, 23).reshape(2, 10)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moments = [m for p in trained for m in (optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])]
    held = sum(t.nbytes for t in [*trained, *(p.grad for p in trained), *moments])
    assert memory_per_gpu(count, CONFIG, Plan("ddp"))["adapter"] == held


def test_sharding_and_quantisation_divide_what_they_say():
    count = Parameters(frozen=10**6, quantised=9 * 10**5, trained=10**4)
    one, eight = (memory_per_gpu(count, CONFIG, Plan("zero3", gpus)) for gpus in (1, 8))
    assert (one["base"], one["adapter"]) == (8 * eight["base"], 8 * eight["adapter"])
    assert one["activations"] == eight["activations"]
    assert memory_per_gpu(count, CONFIG, Plan("zero2", 8))["base"] == one["base"]
    four = memory_per_gpu(count, CONFIG, Plan("ddp", bits=4))["base"]
    assert four == pytest.approx(9e5 * 0.516 + 4e5, rel=0.01)
