"""What several test files build: a tiny Llama, and LoRAMoE on it with weights away from their starting values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY = 64


@pytest.fixture
def ids() -> Tensor:
    """Token ids [2, 10], without the special ones."""
    return torch.arange(3, 23).reshape(2, 10)


@pytest.fixture
def tiny_llama() -> Callable[..., nn.Module]:
    """Makes a Llama of 2 layers with random weights, in evaluation mode; equal seeds make equal models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return LlamaForCausalLM(LlamaConfig(**size, **heads, **tokens, max_position_embeddings=64)).eval()

    return make


@pytest.fixture
def perturb() -> Callable[..., nn.Module]:
    """Draws every adapter weight anew, so that B is not zero and nothing can be right by accident."""

    def draw(model: nn.Module, seed: int = 7) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "loramoe_" in name or "modules_to_save" in name:
                new = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.data.copy_(new)
        return model

    return draw


@pytest.fixture
def adapted(tiny_llama: Callable[..., nn.Module], perturb: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes a PeftModel of the tiny Llama with a perturbed LoRAMoE adapter, in evaluation mode."""
    from peft import LoraMoeConfig, get_peft_model

    def make(**options: Any) -> nn.Module:
        config = LoraMoeConfig(**{"lora_nums": 3, "r": 2, "task_type": "CAUSAL_LM"} | options)
        return perturb(get_peft_model(tiny_llama(), config)).eval()

    return make
