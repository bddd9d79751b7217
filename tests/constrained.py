"""A tiny Llama with a LoRAMoE adapter, and batches for it: what the tests of the constraint share."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe import LoraMoeConfig

B, S, VOCAB = 3, 8, 40


def llama(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=0, **{**sizes, **overrides}))


def adapted(base: nn.Module | None = None, **config: Any) -> Any:
    """A PeftModel of random weights in training mode; B drawn at random, so that the experts do something."""
    base = llama() if base is None else base
    torch.manual_seed(1)
    settings = {"lora_nums": 4, "lora_dropout": 0.0, "init_lora_weights": False, **config}
    return get_peft_model(base, LoraMoeConfig(**{"task_type": "CAUSAL_LM", **settings})).train()


def batch(seed: int = 0, lengths: tuple[int, ...] = (8, 5, 3), labelled_from: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (len(lengths), S), generator=generator)
    mask = (torch.arange(S) < torch.tensor(lengths).unsqueeze(-1)).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :labelled_from] = -100
    types = torch.arange(len(lengths)) % 2
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "task_types": types}


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name not in names}
