"""How much memory a GPU needs to fine-tune a Llama-shaped model: formulas, for a choice before GPUs are paid for.

    python -m loramoe.training.memory --model 70B --gpus 8 --checkpointing
    python -m loramoe.training.memory --model path/to/base --bits 4

Counts of parameters are exact, and bytes of weights, gradients and AdamW's states follow from them and from how an
engine shards. Activations are an estimate from what the backward of each operation keeps, which no GPU has confirmed
yet. What CUDA, NCCL and the allocator's fragments take, 1 to 3 GiB, comes on top.

Per token, in bytes, with bfloat16 activations, attention that keeps no S × S matrix, and a base whose frozen linears
keep nothing of their input (H hidden size, I intermediate size, Q and KV widths of queries and of keys, V vocabulary):

    layer   = 8 H                   both norms, in float32
            + 4 Q + 4 KV            queries, output, keys and values of the attention
            + 2 H + 8 I             the experts' input, gate, up and their product
            + 12 E + 12 E R         gates and hidden of 3 linears, in float32
    model   = layers · layer        without activation checkpointing
            = layers · (2 H + 12 E) + layer          with it: inputs, gates of the constraint, one layer at work
    logits  = 14 V                  bfloat16, float32, its log-softmax and its gradient
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import AutoConfig

from loramoe.utils import UsageError, as_usage_error, positive

Engine = Literal["ddp", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
GIB = 2**30
# Bytes of a quantised weight: 4-bit with its doubly quantised scales (8 bits per 64 weights, and 32 per 64 · 256).
QUANTISED = {4: (4 + 8 / 64 + 32 / (64 * 256)) / 8, 8: 1.0}


@dataclass(frozen=True)
class Shape:
    """What of a Llama-shaped model decides about memory.

    Attributes:
        layers: Decoder layers.
        hidden: Width between them.
        intermediate: Width of the MLP.
        queries: Width of all queries.
        keys: Width of all keys, and of all values.
        vocabulary: Rows of the embedding.
        tied: Whether the output embedding is the input's.
    """

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int = 32000
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """That of a configuration of transformers."""
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            heads * head_dim,
            config.num_key_value_heads * head_dim,
            config.vocab_size,
            bool(config.tie_word_embeddings),
        )

    @property
    def linears_of_layer(self) -> int:
        """Weights of a decoder layer's linears, which are what is quantised."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Weights of the base model."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.layers * (self.linears_of_layer + 2 * self.hidden) + self.hidden + embeddings

    def adapter_parameters(self, experts: int, rank: int) -> int:
        """Weights of the experts and routers beside gate_proj, up_proj and down_proj."""
        H, I = self.hidden, self.intermediate  # noqa: E741
        experts_weights = 3 * experts * rank * (H + I)
        return self.layers * (experts_weights + experts * (2 * H + I))


MODELS = {
    "7B": Shape(32, 4096, 11008, 4096, 4096),
    "13B": Shape(40, 5120, 13824, 5120, 5120),
    "70B": Shape(80, 8192, 28672, 8192, 1024),
}


@dataclass(frozen=True)
class Plan:
    """What is trained, on what.

    Attributes:
        engine: Which of `ENGINES`.
        gpus: How many GPUs share the run.
        experts: lora_nums.
        rank: lora_rank.
        batch: Rows of a forward, of one GPU.
        length: Tokens of a row.
        bits: Of a weight of the frozen base: 16, 8 or 4.
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

    def __post_init__(self) -> None:
        if self.bits not in (4, 8, 16):
            raise ValueError(f"bits must be 4, 8 or 16; got bits={self.bits}.")
        if self.bits != 16 and self.shards_base:
            raise ValueError(
                f"{self.engine} shards the base model, which bitsandbytes' weights are not made for; got "
                f"bits={self.bits}. Set engine to ddp, zero1 or zero2, or bits=16."
            )

    @property
    def shards_base(self) -> bool:
        """Whether each GPU holds but a part of the frozen weights."""
        return self.engine in ("zero3", "zero3_offload", "fsdp2")


def memory_per_gpu(shape: Shape, plan: Plan) -> dict[str, float]:
    """What the memory of one GPU goes to.

    Args:
        shape: The base model's.
        plan: What is trained.

    Returns:
        Bytes by name: base, adapter (weights, gradients, states), buffers, activations, logits.
    """
    tokens = plan.batch * plan.length
    return {
        "base": _base(shape, plan),
        "adapter": _adapter(shape.adapter_parameters(plan.experts, plan.rank), plan),
        "buffers": _buffers(shape, plan),
        "activations": tokens * _activations(shape, plan),
        "logits": tokens * 14 * shape.vocabulary,
    }


def _base(shape: Shape, plan: Plan) -> float:
    """The frozen weights; those that quantising leaves alone become float32, as PEFT prepares them."""
    if plan.bits != 16:
        quantised = shape.layers * shape.linears_of_layer
        return quantised * QUANTISED[plan.bits] + 4 * (shape.parameters - quantised)
    if plan.engine == "zero3_offload":
        return 0
    return 2 * shape.parameters / (plan.gpus if plan.shards_base else 1)


def _adapter(parameters: int, plan: Plan) -> float:
    """Bytes of weights, gradients, and what the optimiser keeps: 4 for a float32 copy, 8 for AdamW's two states."""
    N = plan.gpus
    per_parameter = {
        "ddp": 4 + 4 + 4 + 8,  # weights, gradients, DDP's buckets of them, states
        "zero1": 2 + 2 + (4 + 4 + 8) / N,  # bfloat16 weights and gradients; float32 gradients, copy and states
        "zero2": 2 + (2 + 4 + 4 + 8) / N,
        "zero2_offload": 2 + 2 / N,
        "zero3": (4 + 4 + 4 + 8) / N,
        "zero3_offload": 0,
        "fsdp2": (4 + 4 + 8) / N,
    }
    return parameters * per_parameter[plan.engine]


def _buffers(shape: Shape, plan: Plan) -> float:
    """Two decoder layers gathered where the base is sharded: one at work, one on its way; DeepSpeed's two buckets."""
    layer = shape.linears_of_layer + 2 * shape.hidden
    gathered = 2 * 2 * layer if plan.shards_base and (plan.gpus > 1 or plan.engine == "zero3_offload") else 0
    buckets = 2 * 2 * shape.hidden**2 if plan.engine.startswith("zero") else 0  # reduce_bucket_size "auto"
    return gathered + buckets


def _activations(shape: Shape, plan: Plan) -> float:
    """Bytes a token, as the module's formulas say."""
    gates = 12 * plan.experts
    layer = 8 * shape.hidden + 4 * shape.queries + 4 * shape.keys + 2 * shape.hidden + 8 * shape.intermediate
    layer += gates * (1 + plan.rank)
    if plan.checkpointing:
        return shape.layers * (2 * shape.hidden + gates) + layer
    return shape.layers * layer


def table(name: str, gpus: tuple[int, ...] = (1, 2, 4, 8), checkpointing: bool = True) -> str:
    """A Markdown table of GiB per GPU, of every engine.

    Args:
        name: Which of `MODELS`.
        gpus: How many GPUs share the run, a column each.
        checkpointing: Whether activations are recomputed.

    Returns:
        The table, with the defaults of Plan for all else.
    """
    lines = [
        f"| {name} | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in gpus) + " |",
        "|---" * (len(gpus) + 1) + "|",
    ]
    for engine in ENGINES:
        plans = [Plan(engine, n, checkpointing=checkpointing) for n in gpus]
        cells = [f"{sum(memory_per_gpu(MODELS[name], plan).values()) / GIB:.1f}" for plan in plans]
        lines.append(f"| `{engine}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Prints what the memory of one GPU goes to."""
    parser = argparse.ArgumentParser(
        prog="python -m loramoe.training.memory", description="Memory per GPU, by formula."
    )
    parser.add_argument("--model", default="7B", help=f"{', '.join(MODELS)}, or a folder or name with a config.json")
    parser.add_argument("--engine", choices=ENGINES, help="default: all of them, in one column")
    for name in ("gpus", "experts", "rank", "batch", "length", "bits"):
        parser.add_argument(f"--{name}", type=positive, default=getattr(Plan, name))
    parser.add_argument("--checkpointing", action="store_true", help="activations are recomputed")
    values = vars(parser.parse_args(argv))
    name, engine = values.pop("model"), values.pop("engine")
    about = f"--model must be {', '.join(MODELS)}, or a folder or name with a config.json; got {name!r}:"
    try:
        with as_usage_error(ValueError, OSError, about=about):
            shape = MODELS[name] if name in MODELS else Shape.of(AutoConfig.from_pretrained(name))
    except UsageError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    adapter = shape.adapter_parameters(values["experts"], values["rank"])
    print(f"{name}: {shape.parameters:,} parameters, adapter {adapter:,}")
    for each in [engine] if engine else ENGINES:
        try:
            parts = memory_per_gpu(shape, Plan(each, **values))
        except ValueError as error:
            print(f"{each:14} {error}")
            continue
        told = ", ".join(f"{part} {size / GIB:.2f}" for part, size in parts.items())
        print(f"{each:14} {sum(parts.values()) / GIB:6.1f} GiB  ({told})")


if __name__ == "__main__":
    main()
