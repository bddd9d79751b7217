"""Numbers of a made-up report, for the tests of what shows them."""

from __future__ import annotations

import random

import torch

from loramoe import LoraMoeConfig
from loramoe.report.layers import bands_of, layers_of
from loramoe.report.measures import Measures, measure
from loramoe.report.page import Source
from loramoe.report.routing import Routing

HOSTILE = "<script>window.injected=1</script>\"'&`*_|[x](http://x)\u202e\n"


def make_measures(
    task_types: tuple[int, ...] = (0, 1),
    expert_types: tuple[int, ...] = (1, 1, 0, 0),
    layers: int = 3,
    vocabulary: int = 40,
    text: str = "",
) -> Measures:
    """Random gates; every token reads `text`, or else its id."""
    generator = torch.Generator().manual_seed(0)
    linears = [f"model.layers.{layer}.mlp.{name}" for layer in range(layers) for name in ("up_proj", "down_proj")]
    bands = bands_of(layers_of(linears))

    def gates(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, len(expert_types), generator=generator, dtype=torch.float64).softmax(-1)

    tokens_T = torch.tensor([random.Random(t).randrange(50, 99) for t in task_types])
    count_V = torch.arange(vocabulary) % 9
    routing = Routing(
        Q_TLE=gates(len(task_types), len(linears)) * tokens_T[:, None, None],
        entropy_TL=0.9 * torch.rand(len(task_types), len(linears), generator=generator) * tokens_T[:, None],
        tokens_T=tokens_T,
        Q_KVE=gates(len(bands), vocabulary) * count_V[:, None],
        count_V=count_V,
        rows=12,
        task_types=task_types,
        expert_types=expert_types,
        linears=tuple(linears),
        bands=bands,
    )
    return measure(routing, lambda id: text or f" token{id}")


def make_source(name: str = "adapter", **options: object) -> Source:
    return Source(name, f"base of {name}", f"{name}.json", LoraMoeConfig(lora_nums=4, **options))
