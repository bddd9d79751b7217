"""Whether a processor can compute what a scale asks for in bearable time.

The real scale trains and scores in bfloat16. A processor without instructions for it (AVX-512 BF16, AMX) computes the
same, but slowly: training on 40 rows took 410 s on one thread of an AMD EPYC of the third generation, in float32 25 s
(torch 2.13.0, 2026-11-28). Nothing else tells, and a grid of hours becomes one of days.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

SIZE: Final = 384
TIMES: Final = 5
BEARABLE: Final = 2.0


def bfloat16_slowdown() -> float:
    """How many times as long a matrix product takes in bfloat16 as in float32, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x_NN = torch.randn(SIZE, SIZE)
    seconds = [_seconds(lambda x=x: x @ x) for x in (x_NN.bfloat16(), x_NN)]
    torch.set_num_threads(threads)
    return seconds[0] / seconds[1]


def warning(bf16: bool) -> str | None:
    """What to tell whoever starts a grid.

    Args:
        bf16: Whether its scale computes in bfloat16.

    Returns:
        None where that is no burden: on a GPU, on a processor that has it, at a scale that does without.
    """
    if not bf16 or torch.cuda.is_available():
        return None
    slowdown = bfloat16_slowdown()
    if slowdown < BEARABLE:
        return None
    return (
        f"This scale computes in bfloat16, in which this processor takes {slowdown:.0f} times as long as in float32: a "
        "run will take hours, not minutes. Take a GPU, or a processor with AVX-512 BF16 or AMX; or say --float32, in "
        "which results are others than those in bfloat16 and have a folder of their own."
    )


def _seconds(compute: Callable[[], Tensor]) -> float:
    compute()
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        compute()
        taken.append(time.perf_counter() - start)
    return min(taken)
