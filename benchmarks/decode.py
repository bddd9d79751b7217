"""Greedy generation with a key-value cache at batch size 1: milliseconds per token.

With one token at a time the number of calls decides, not arithmetic. On a GPU a static cache is measured too, with
which transformers compiles the model. LoRA is not merged here; a merged LoRA costs what the frozen model costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import paired
from benchmarks.sides import OURS, LlamaShape, Mixture, model_side

SIDES = ("base", "lora", *OURS)
LLAMA = LlamaShape(8, 4096, 11008, 32, 32000, 4096)  # a quarter of Llama-2-7B
SETTINGS = {  # model, dtype, tokens to generate, compiled
    "quick": [(LlamaShape(2, 32, 48, 2, 64, 64), "float32", 4, False)],
    "cpu": [
        (LlamaShape(8, 512, 1376, 8, 4096, 256), "float32", 24, False),
        (LlamaShape(2, 2048, 5504, 16, 4096, 256), "float32", 24, False),
    ],
    "cuda": [(LLAMA, "bfloat16", 64, False), (LLAMA, "bfloat16", 64, True)],
}


def generation(model: Any, ids: Tensor, tokens: int, compiled: bool) -> Callable[[], Tensor]:
    """Return a function that generates once, [1, prompt + tokens]."""
    static = {"cache_implementation": "static"} if compiled else {}
    options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True, **static}
    return lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


def measure(
    shape: LlamaShape, dtype: str, tokens: int, compiled: bool, device: torch.device, pairs: int
) -> dict[str, Any]:
    """Compare the sides of one setting."""
    base: Any = shape.build(device, getattr(torch, dtype))
    base.generation_config.eos_token_id = None  # generation ends at max_new_tokens
    base.generation_config.pad_token_id = 0
    ids = torch.randint(shape.vocabulary, (1, 32), device=device)
    sides = {name: model_side(name, base, Mixture()).eval() for name in SIDES}
    runs = {name: generation(model, ids, tokens, compiled) for name, model in sides.items()}
    warmup = 3 if compiled else 1  # compilation, then the recording of the CUDA graph
    setting = {"shape": asdict(shape), "dtype": dtype, "tokens": tokens, "compiled": compiled}
    return setting | {"seconds": paired(runs, pairs, warmup, name="generation")}


def run(device: torch.device, quick: bool) -> dict[str, Any]:
    """Measure all settings."""
    todo, pairs = SETTINGS["quick" if quick else device.type], 2 if quick else 9
    return {"mixture": asdict(Mixture()), "settings": [measure(*setting, device, pairs) for setting in todo]}
