"""The package moe-peft (TUDB-Labs/MoE-PEFT), which has a LoRAMoE of its own, beside ours: one linear, float32.

It pins an older transformers, so it is measured in an environment of its own, together with all other sides of
`layer.py`, in the same rounds:

    bash benchmarks/moe_peft.sh [--quick]

Its adapters are always float32 and always have dropout (it asserts that the probability is above 0), hence the cells.
Neither its constraint nor ours is part of a single linear.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version

import torch
import torch.distributed.tensor  # peft 0.21 uses it, and leaves its import to newer versions of transformers
from moe_peft.adapters import LoraMoe, LoraMoeConfig
from moe_peft.common import Linear, LLMBatchConfig, LLMModelInput
from torch import Tensor, nn

from benchmarks.harness import run_alone, start, write_result
from benchmarks.layer import Cell, measure
from benchmarks.sides import Mixture
from loramoe.ops import mixture_reference, route

SIDE = "moe-peft"


class MoePeftLinear(nn.Module):
    """A linear of moe-peft with a LoRAMoE adapter, called like any other.

    Args:
        base: The frozen linear.
        mixture: Hyper-parameters.
    """

    def __init__(self, base: nn.Linear, mixture: Mixture) -> None:
        super().__init__()
        config = LoraMoeConfig(
            adapter_name=SIDE,
            lora_r_=mixture.rank,
            lora_alpha_=int(mixture.alpha),
            lora_dropout_=mixture.dropout,
            target_modules_={"linear": True},
            num_experts_=mixture.experts,
            router_init_range_=5.0,
        ).check()
        self.linear = Linear(base, str(base.weight.device))
        self.router = LoraMoe(base.in_features, base.weight.device, config)
        self.linear.moes_[SIDE] = self.router
        for e in range(mixture.experts):
            self.linear.init_lora_weight(config.expert_config(e))
        self.experts = nn.ModuleList(self.linear.loras_.values())  # it keeps them in a dict that nn.Module overlooks
        for expert in self.experts:
            nn.init.kaiming_uniform_(expert.lora_b_.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Output [tokens, F] for an input [tokens, D]; the package takes batches of sequences."""
        batch = LLMModelInput(batch_configs_=[LLMBatchConfig(SIDE, 0, 1)])
        return self.linear(x[None], batch)[0]

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Router [E, D], A [E·R, D] and B [F, E·R]."""
        A = torch.cat([expert.lora_a_.weight for expert in self.experts])
        B = torch.cat([expert.lora_b_.weight for expert in self.experts], dim=1)
        return self.router.gate_.weight, A, B


def guests(base: nn.Linear, mixture: Mixture) -> dict[str, nn.Module]:
    """The side, once it has been held to the equation (in evaluation, so without dropout).

    Args:
        base: The frozen linear.
        mixture: Hyper-parameters.

    Returns:
        The side by its name.

    Raises:
        AssertionError: If it computes something else.
    """
    side = MoePeftLinear(base, mixture).eval()
    with torch.no_grad():
        x = torch.randn(64, base.in_features, device=base.weight.device)
        router, A, B = side.weights()
        truth = base(x) + mixture_reference(x, route(x, router), A, B, mixture.scaling)
        if not (side(x) - truth).norm() <= 1e-5 * truth.norm():
            raise AssertionError(f"{SIDE} computes something else than the equation: not timed.")
    return {SIDE: side.train()}


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each cell, and write `results/moe_peft.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: Tiny sizes, to see that the code runs.
    """
    where = start(device)
    sizes = [((64, 96), 32)] if quick else [((1024, 2816), 512), ((2048, 5504), 2048)]
    pairs = 2 if quick else 9
    cells = [measure(Cell(*size, "float32", 0.05), where, pairs, guests=guests) for size in sizes]
    for cell in cells:
        middle = {name: cell["time_over_base"][name]["p50"] for name in (SIDE, "naive", "fused")}
        print(cell["features"], ", ".join(f"{name} {value:.2f} of base" for name, value in middle.items()))
    body = {"quick": quick, "pairs": pairs, "mixture": asdict(Mixture(dropout=0.05)), "cells": cells}
    print(write_result("moe_peft", where.type, body | {"package": f"moe-peft {version('moe-peft')}"}))


if __name__ == "__main__":
    run_alone(main)
