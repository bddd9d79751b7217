"""Dropout that is remade from its seed in the backward instead of being stored.

`F.dropout` keeps a mask and a second copy of the input for backward; a seed is one number. The mask takes 16 random
bits an element, so that one 64-bit draw serves four elements: on 2 cores of an AMD EPYC (Zen 5) a mask of 2048 x 2048
takes 6 ms, where `bernoulli_` takes 27 ms (torch 2.13, 2026-11-22). The probability is therefore a multiple of 2^-16:
0.05 becomes 0.0500031, and what is kept is scaled by that very number, so that the mean is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 2**16


def draw_seed() -> int:
    """A seed from PyTorch's default generator on the CPU.

    From there it obeys `torch.manual_seed`, and checkpointing restores it for its second forward; and no device has to
    be waited for.

    Returns:
        The seed.
    """
    return int(torch.randint(2**62, (), device="cpu").item())


def kept_share(p: float) -> float:
    """Expected share of the elements that dropout keeps.

    Args:
        p: Probability of dropping an element, rounded to a multiple of 2^-16.

    Returns:
        1 - p, of the rounded p.

    Raises:
        ValueError: If p is no probability below 1.
    """
    return 1 - _steps_of(p) / _STEPS


def _steps_of(p: float) -> int:
    if not 0 <= p < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {p}. Set lora_dropout=0 for none.")
    return min(round(p * _STEPS), _STEPS - 1)  # something must be kept, as what is kept is scaled


def dropout_mask(x: Tensor, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    """1 where dropout keeps an element and 0 where not: the same whenever seed, shape and device are the same.

    What is kept is not scaled: divide by `kept_share(p)` where that is cheapest.

    Args:
        x: Any tensor; its shape and device count.
        p: Probability of dropping an element.
        seed: What `draw_seed` gave.
        dtype: Of the mask.

    Returns:
        Mask of the shape of x.
    """
    if x.is_meta:
        return torch.empty(x.shape, dtype=dtype, device=x.device)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=torch.Generator(x.device).manual_seed(seed))
    steps = words.view(torch.int16)[: x.numel()]  # each of the 2^16 steps is as likely
    # In place, as a comparison that makes a bool, and products with bools, are ten times slower on a CPU.
    return steps.ge_(_steps_of(p) - _STEPS // 2).to(dtype).view(x.shape)
