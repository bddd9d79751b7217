"""A tiny base model of each family with a tokenizer, and an adapter on it, saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraMoeConfig, get_peft_model

from loramoe.serving import FAMILIES

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
SIZE |= {"num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Another rank and scaling at some layers, one in a module that has a bias in Qwen2, and layers without an adapter.
ADAPTER = {"target_modules": ["gate_proj", "down_proj", "q_proj"], "lora_nums": 3, "r": 2, "use_rslora": True}
ADAPTER |= {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"down_proj": 5}, "task_type": "CAUSAL_LM"}


@pytest.fixture
def save_pair(tiny_task: Any, perturb: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Saves a base model and an adapter on it; returns the adapter's folder, beside which `base` lies."""

    def save(family: str = "llama", shard: str = "1GB", **options: Any) -> Path:
        config, _, causal_lm = (getattr(transformers, name) for name in FAMILIES[family])
        torch.manual_seed(0)
        base = causal_lm(config(**SIZE, **TOKENS)).eval()
        for weight in base.parameters():
            weight.data.add_(torch.randn(weight.shape) / 10)  # biases are zero at the start, and norms one
        base.save_pretrained(tmp_path / "base", max_shard_size=shard)
        for file in tiny_task.base.glob("tokenizer*"):
            shutil.copy(file, tmp_path / "base")
        model = perturb(get_peft_model(base, LoraMoeConfig(**{**ADAPTER, **options})))
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save
