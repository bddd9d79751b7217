"""Counts the operations of one adapted layer and the graphs of a compiled model: `python -m benchmarks.operations`.

Views compute nothing and are not counted. The counts do not depend on the machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.sides import LlamaShape, Mixture, model_side
from loramoe.ops import IMPLEMENTATIONS

SHAPES = {"x": (2, 5, 16), "base": (24, 16), "router": (8, 16), "A": (32, 16), "B": (24, 32)}  # E = 8, R = 4
VIEWS = ("aten.detach", "aten._unsafe_view", "aten.alias")  # views for which `is_view` is false


class OperationCounter(TorchDispatchMode):
    """Collects the names of the operations that run within, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note its name."""
        if not op.is_view and not str(op).startswith(VIEWS):
            self.names.append(str(op))
        return op(*args, **(kwargs or {}))


def operations(adapter: str, dropout: float) -> list[str]:
    """Return the operations of a frozen layer with an adapter, forward and backward, in float32.

    Args:
        adapter: "lora", of rank E·R, or one of `IMPLEMENTATIONS`, whose gates get a gradient as from the constraint.
        dropout: Probability of dropping an input of the adapter.
    """
    x, base, router, A, B = (torch.randn(shape) for shape in SHAPES.values())
    for tensor in (x, router, A, B):
        tensor.requires_grad_()
    with OperationCounter() as counter:
        if adapter == "lora":  # as `peft.tuners.lora.layer.Linear.forward`
            outputs = (x @ base.T + F.linear(F.linear(F.dropout(x, dropout) if dropout else x, A), B) * 8.0,)
        else:
            outputs = IMPLEMENTATIONS[adapter](x @ base.T, x, router, A, B, 8.0, dropout)
    gradients = [torch.randn_like(output) for output in outputs]
    with counter:
        torch.autograd.backward(outputs, gradients)
    return counter.names


def graphs(layers: int) -> int:
    """Return the number of graphs that torch.compile makes of a training forward pass with the constraint."""
    base = LlamaShape(layers, 32, 48, 2, 64, 64).build(torch.device("cpu"), torch.float32)
    ids = torch.arange(3, 23).reshape(2, 10)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    torch._dynamo.reset()
    counter = CompileCounter()
    torch.compile(model_side("fused", base, Mixture()), backend=counter)(**batch, task_types=torch.tensor([0, 1]))
    return counter.frame_count


if __name__ == "__main__":
    print("| operations, forward + backward | without dropout | with dropout |\n| --- | --- | --- |")
    for name in ("lora", *IMPLEMENTATIONS):
        print(f"| {name} | {len(operations(name, 0.0))} | {len(operations(name, 0.05))} |")
    print("\n| layers of the model | graphs of a training forward pass |\n| --- | --- |")
    print("\n".join(f"| {layers} | {graphs(layers)} |" for layers in (2, 4)))
