"""Memory that a training needs on each GPU, by formula: printed by `--dry_run`, and the table of docs/distributed.md.

Parameters are counted on the model itself, without weights. Bytes of weights, gradients and AdamW's states follow from
them and from how an engine shards. Activations are an estimate from what the backward of each operation keeps, which no
GPU has confirmed yet. CUDA, NCCL and the allocator take 1 to 3 GiB more.

Bytes per token, with bfloat16 activations and attention that keeps no S × S matrix (H hidden size, I intermediate size,
Q and KV widths of queries and of keys, V vocabulary, E experts, R rank):

    layer   = 8 H + 4 Q + 4 KV + 2 H + 8 I + 12 E + 12 E R     norms, attention, MLP, gates and hidden of the experts
    model   = layers · layer                                   without activation checkpointing
            = layers · (2 H + 12 E) + layer                    with it
    logits  = 14 V                                             bfloat16, float32, log-softmax and gradient
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

Engine = Literal["ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
GIB = 2**30
# Bytes of a quantised weight: 4-bit with its doubly quantised scales (8 bits per 64 weights, and 32 per 64 · 256).
QUANTISED = {4: (4 + 8 / 64 + 32 / (64 * 256)) / 8, 8: 1.0}


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has.

    Attributes:
        frozen: Of the base model.
        quantised: Those of them that load_in_kbits quantises: of linear layers but the head's.
        trained: Of the adapter and of modules trained whole.
    """

    frozen: int
    quantised: int
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
    """What is trained, on what.

    Attributes:
        engine: Which of `ENGINES`.
        gpus: How many GPUs share the run.
        experts: lora_nums.
        rank: lora_rank.
        batch: Samples of a forward pass, of one GPU.
        length: Tokens of a sample.
        bits: Of a weight of the frozen base model: 32, 16, 8 or 4.
        checkpointing: Whether activations are recomputed.
    """

    engine: Engine = "zero2"
    gpus: int = 1
    experts: int = 8
    rank: int = 4
    batch: int = 2
    length: int = 1024
    bits: int = 16
    checkpointing: bool = False


def memory_per_gpu(count: Parameters, config: Any, plan: Plan) -> dict[str, float]:
    """What the memory of one GPU goes to."""
    text = config.get_text_config()
    tokens = plan.batch * plan.length
    return {
        "base": _base(count, plan),
        "adapter": _adapter(count.trained, plan),
        "buffers": _buffers(count, text, plan),
        "activations": tokens * _activations(text, plan),
        "logits": tokens * 14 * text.vocab_size,
    }


def table(models: Mapping[str, tuple[Parameters, Any]], plan: Plan, gpus: tuple[int, ...] = (1, 2, 4, 8)) -> str:
    """A Markdown table of GiB per GPU for each model and engine."""
    lines = ["| model | engine | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in gpus) + " |"]
    lines.append("|---" * (len(gpus) + 2) + "|")
    for name, (count, config) in models.items():
        for engine in ENGINES:
            plans = [Plan(**{**vars(plan), "engine": engine, "gpus": n}) for n in gpus]
            cells = [f"{sum(memory_per_gpu(count, config, each).values()) / GIB:.1f}" for each in plans]
            lines.append(f"| {name} | `{engine}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shards_base(engine: Engine) -> bool:
    return engine in ("zero3", "zero3_offload", "fsdp2")


def _base(count: Parameters, plan: Plan) -> float:
    """The frozen weights; those that quantisation leaves alone become float32, as PEFT prepares them."""
    if plan.bits in QUANTISED:
        return count.quantised * QUANTISED[plan.bits] + 4 * (count.frozen - count.quantised)
    if plan.engine == "zero3_offload":
        return 0
    return plan.bits / 8 * count.frozen / (plan.gpus if _shards_base(plan.engine) else 1)


def _adapter(parameters: int, plan: Plan) -> float:
    """Bytes of weights, gradients, and what the optimizer keeps: 4 for a float32 copy, 8 for AdamW's two states."""
    N = plan.gpus
    per_parameter = {
        "ddp": 4 + 4 + (4 if N > 1 else 0) + 8,  # weights, gradients, DDP's buckets of them, states
        "zero1": 2 + 2 + (4 + 4 + 8) / N,  # bfloat16 weights and gradients; float32 gradients, copy and states
        "zero2": 2 + (2 + 4 + 4 + 8) / N,
        "zero2_offload": 2 + 2 / N,
        "zero3": (4 + 4 + 4 + 8) / N,
        "zero3_offload": 0,
        "fsdp2": (4 + 4 + 8) / N,
    }
    return parameters * per_parameter[plan.engine]


def _buffers(count: Parameters, text: Any, plan: Plan) -> float:
    """Two decoder layers gathered where the base is sharded: one at work, one on its way; DeepSpeed's two buckets."""
    layer = count.quantised / text.num_hidden_layers
    gathered = 2 * 2 * layer if _shards_base(plan.engine) and (plan.gpus > 1 or "offload" in plan.engine) else 0
    buckets = 2 * 2 * text.hidden_size**2 if plan.engine.startswith("zero") else 0  # reduce_bucket_size "auto"
    return gathered + buckets


def _activations(text: Any, plan: Plan) -> float:
    H, heads = text.hidden_size, text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or H // heads
    queries, keys = heads * head_dim, (getattr(text, "num_key_value_heads", None) or heads) * head_dim
    gates = 12 * plan.experts
    layer = 8 * H + 4 * queries + 4 * keys + 2 * H + 8 * (getattr(text, "intermediate_size", None) or 4 * H)
    layer += gates * (1 + plan.rank)
    if plan.checkpointing:
        return float(text.num_hidden_layers * (2 * H + gates) + layer)
    return float(text.num_hidden_layers * layer)
