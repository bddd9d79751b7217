"""A dropout mask that backward recomputes from its seed, so that nothing of it is stored.

`F.dropout` stores a mask and a second copy of the input; a seed is one number. The mask takes 16 random bits per
element, so one 64-bit draw serves four of them. A mask of 2048 x 2048 takes 11 ms where `bernoulli_` takes 45 ms (one
thread of an AMD EPYC with AVX2, torch 2.13, 2026-11-30). The probability is therefore a multiple of 2^-16: 0.05 becomes
0.0500031. The scale is made of that very probability, so that the mean is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 2**16


def draw_seed() -> int:
    """A seed from PyTorch's default CPU generator.

    So the mask obeys `torch.manual_seed`, activation checkpointing reproduces it, and no device is synchronised.
    """
    return int(torch.randint(2**62, (), device="cpu").item())


def keep_prob(p: float) -> float:
    """The probability of keeping an element: 1 - p, p rounded to a multiple of 2^-16, and never 0.

    Raises:
        ValueError: If p is not a probability below 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {p}. Set lora_dropout=0 for none.")
    return max(_STEPS - round(p * _STEPS), 1) / _STEPS


def dropout_mask(x: Tensor, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    """1 where dropout keeps an element of x, 0 elsewhere: equal for equal seed, shape and device.

    The mask is not scaled: divide by `keep_prob(p)` where that is cheapest.

    Args:
        x: Any tensor; only its shape and device count.
        p: Probability of dropping an element.
        seed: Result of `draw_seed`.
        dtype: Dtype of the mask.
    """
    if x.is_meta:
        return torch.empty(x.shape, dtype=dtype, device=x.device)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=torch.Generator(x.device).manual_seed(seed))
    steps = words.view(torch.int16)[: x.numel()]  # uniform over -2^15 … 2^15 - 1
    # In place and without bool: on a CPU, making a bool tensor and multiplying by one takes several times as long.
    return steps.ge_(_STEPS // 2 - round(keep_prob(p) * _STEPS)).to(dtype).view(x.shape)
