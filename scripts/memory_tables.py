"""Writes the memory tables of the docs from the formulas of `loramoe.training.launch.memory`.

    python scripts/memory_tables.py            # writes
    python scripts/memory_tables.py --check    # fails if a page differs

Models are built without weights, from the sizes that their config.json have.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate import init_empty_weights
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loramoe import LoraMoeConfig
from loramoe.training.launch.memory import GIB, Parameters, Plan, memory_per_gpu
from scripts.blocks import main

ENGINES = ("ddp", "zero2", "zero3", "zero3_offload")  # zero1 is close to zero2, fsdp2 to zero3
LLAMA = {
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Llama-3-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def counted(name: str) -> tuple[Parameters, Any]:
    """Parameters and configuration of a model with 8 experts of rank 4 in its MLP."""
    config = LlamaConfig(**LLAMA[name], tie_word_embeddings=False)
    with init_empty_weights(include_buffers=False):
        base = LlamaForCausalLM(config)
    model = get_peft_model(base, LoraMoeConfig(r=4, lora_nums=8, task_type="CAUSAL_LM"))
    return Parameters.of(model), config


def llama3_table() -> str:
    """GiB of one of 8 GPUs for Llama-3-8B, without and with checkpointing."""
    count, config = counted("Llama-3-8B")
    lines = ["| Llama-3-8B, 2 samples of 1,024 tokens | GiB | of it activations and logits |", "|---|---|---|"]
    rows = [("zero2", 8, 16, False), ("zero2", 8, 16, True), ("zero3", 8, 16, True), ("ddp", 1, 4, True)]
    for engine, gpus, bits, checkpointing in rows:
        parts = memory_per_gpu(count, config, Plan(engine, gpus, bits=bits, checkpointing=checkpointing))  # type: ignore[arg-type]
        name = f"`{engine}`, {gpus} GPU{'s' * (gpus > 1)}" + (f", {bits} bits" if bits != 16 else "")
        name += ", `gradient_checkpointing=true`" if checkpointing else ""
        live = parts["activations"] + parts["logits"]
        lines.append(f"| {name} | {sum(parts.values()) / GIB:.1f} | {live / GIB:.1f} |")
    return "\n".join(lines)


def engines_table(models: Mapping[str, tuple[Parameters, Any]]) -> str:
    """GiB of one GPU for each model, engine and number of GPUs, with checkpointing."""
    lines = ["| model | engine | 1 GPU | 2 GPUs | 4 GPUs | 8 GPUs |", "|---|---|---|---|---|---|"]
    for (name, (count, config)), engine in itertools.product(models.items(), ENGINES):
        plans = [Plan(engine, gpus, checkpointing=True) for gpus in (1, 2, 4, 8)]  # type: ignore[arg-type]
        cells = [f"{sum(memory_per_gpu(count, config, plan).values()) / GIB:.1f}" for plan in plans]
        lines.append(f"| {name} | `{engine}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def blocks() -> dict[tuple[str, str], str]:
    """What stands in which block of which page."""
    models = {name: counted(name) for name in LLAMA}
    return {
        ("llama3.md", "memory:llama3"): llama3_table(),
        ("distributed.md", "memory:engines"): engines_table(models),
    }


if __name__ == "__main__":
    sys.exit(main(blocks(), __doc__ or ""))
