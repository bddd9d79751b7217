"""Memory that a training needs on each GPU, by formula: printed by `--dry_run`, and the tables of the docs.

Parameters are counted on the model itself, without weights. Bytes of weights, gradients and AdamW's states follow from
them and from how an engine shards. Activations are an estimate of what the backward pass keeps, which no GPU has
confirmed yet. CUDA, NCCL and the allocator take 1 to 3 GiB more.

Bytes per token, with bfloat16 activations and attention that keeps no S × S matrix (H hidden size, I intermediate size,
Q and KV widths of queries and of keys, V vocabulary, E experts, R rank):

    layer   = 8 H + 4 Q + 4 KV + 2 H + 8 I + 12 E + 12 E R     norms, attention, MLP, gates and hidden of the experts
    model   = layers · layer                                   without activation checkpointing
            = layers · (2 H + 12 E) + layer                    with it
    logits  = 14 V                                             bfloat16, float32, log-softmax and gradient
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Engine = Literal["ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"]
GIB = 2**30
# Bytes of a quantised weight: 4-bit with its doubly quantised scales (8 bits per 64 weights, and 32 per 64 · 256).
QUANTISED = {4: (4 + 8 / 64 + 32 / (64 * 256)) / 8, 8: 1.0}


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has: frozen ones, those of them that quantisation concerns, and trained ones."""

    frozen: int
    quantised: int  # of linear layers but the head's
    trained: int

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Counts those of an adapted model, which may be on the meta device."""
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        linear = {
            id(m.weight): m.weight.numel()
            for name, m in model.named_modules()
            if isinstance(m, nn.Linear) and not m.weight.requires_grad and "lm_head" not in name
        }
        return cls(sum(p.numel() for p in model.parameters()) - trained, sum(linear.values()), trained)


@dataclass(frozen=True)
class Plan:
    """What is trained, on what."""

    engine: Engine = "zero2"
    gpus: int = 1
    experts: int = 8
    rank: int = 4
    batch: int = 2  # samples of a forward pass, of one GPU
    length: int = 1024  # tokens of a sample
    bits: int = 16  # of a frozen weight: 32, 16, 8 or 4
    checkpointing: bool = False  # of activations


def memory_per_gpu(count: Parameters, config: Any, plan: Plan) -> dict[str, float]:
    """Bytes of one GPU for a base model of this configuration, the adapter, buffers, activations and logits."""
    text, tokens, offloaded = config.get_text_config(), plan.batch * plan.length, plan.engine == "zero3_offload"
    sharded = plan.gpus if plan.engine in ("zero3", "fsdp2") else 1
    base = 0 if offloaded else plan.bits / 8 * count.frozen / sharded
    if plan.bits in QUANTISED:  # PEFT makes what is not quantised float32
        base = count.quantised * QUANTISED[plan.bits] + 4 * (count.frozen - count.quantised)
    # Two decoder layers are gathered where the base is sharded: one at work, one on its way.
    gathered = 2 * 2 * count.quantised / text.num_hidden_layers if sharded > 1 or offloaded else 0
    buckets = 2 * 2 * text.hidden_size**2 if plan.engine.startswith("zero") else 0  # reduce_bucket_size "auto"
    return {
        "base": base,
        "adapter": count.trained * _adapter(plan.engine, plan.gpus),
        "buffers": gathered + buckets,
        "activations": tokens * _activations(text, plan),
        "logits": tokens * 14 * text.vocab_size,
    }


def _adapter(engine: Engine, N: int) -> float:
    """Bytes per parameter: weights, gradients, a float32 copy (4), AdamW's two states (8)."""
    return {
        "ddp": 4 + 4 + (4 if N > 1 else 0) + 8,  # weights, gradients, DDP's buckets of them, states
        "zero1": 2 + 2 + (4 + 4 + 8) / N,  # bfloat16 weights and gradients; float32 gradients, copy and states
        "zero2": 2 + (2 + 4 + 4 + 8) / N,
        "zero2_offload": 2 + 2 / N,
        "zero3": (4 + 4 + 4 + 8) / N,
        "zero3_offload": 0,
        "fsdp2": (4 + 4 + 8) / N,
    }[engine]


def _activations(text: Any, plan: Plan) -> float:
    H, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or H // heads
    queries, keys = heads * head_dim, (getattr(text, "num_key_value_heads", None) or heads) * head_dim
    gates = 12 * plan.experts
    layer = 8 * H + 4 * queries + 4 * keys + 2 * H + 8 * (getattr(text, "intermediate_size", None) or 4 * H)
    layer += gates * (1 + plan.rank)
    layers = text.num_hidden_layers
    return float(layers * (2 * H + gates) + layer if plan.checkpointing else layers * layer)
