"""A scale of a hundred rows and a model of random weights: what runs in seconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experiments.knowledge_forgetting.exact import Item, exact
from loramoe.data import ReleaseTemplate, conversation

TOKENIZER = Path(__file__).parents[3] / "data" / "tiny_llama"
COLOURS = ("red", "blue", "green", "white")


class MadeUpScale:
    """Rows that ask for a colour by its number; see `experiments.knowledge_forgetting.scale.Scale`."""

    name = "made_up"
    sources = ("tests/experiments/knowledge_forgetting/made_up.py",)
    knowledge = ("numbers",)
    downstream = ("colours",)
    chance: ClassVar = {"numbers": 0.0, "colours": 0.25}
    rows = 64
    row_counts = (16, 64)
    batch_size = 8
    max_seq_length = 64
    learning_rates: ClassVar = {"full": (1e-3, 3e-3), "lora": (3e-3, 1e-2), "loramoe": (3e-3, 1e-2)}
    bf16 = False
    packing = False

    def asked(self) -> str:
        return repr([self._row(number, 0) for number in range(4)])

    def base(self) -> tuple[Any, Any]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.2,  # with less, a frozen head is too quiet for adapters to learn within a few steps
        )
        return LlamaForCausalLM(config).eval(), AutoTokenizer.from_pretrained(TOKENIZER)

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Any]:
        rng = random.Random(seed)
        return [self._row(rng.randrange(4), rng.randrange(2)) for _ in range(count)]

    def score(self, model: Any, tokenizer: Any, split: str) -> dict[str, np.ndarray]:
        template = ReleaseTemplate(tokenizer)
        encoded = template.encode([conversation(f"Colour {number}?", "", COLOURS[number]) for number in range(4)])
        items = [Item(one.prompt, one.target) for one in encoded]
        return {"numbers": exact(model, items[:1]), "colours": exact(model, items)}

    def _row(self, number: int, task_type: int) -> Any:
        return {"instruction": f"Colour {number}?", "input": "", "output": COLOURS[number], "task_type": task_type}


class FailingScale(MadeUpScale):
    """One that has no rows for seed 1."""

    def train_rows(self, count: int, seed: int, replay: float = 0.0) -> list[Any]:
        if seed == 1:
            raise OSError("the disk is full")
        return super().train_rows(count, seed, replay)
