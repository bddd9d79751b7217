"""The dtypes of the mixture's products, with and without autocast.

Router and softmax stay float32 whatever the model's dtype (float64 stays float64): gates rounded to bfloat16 would hide
the small imbalances that the balancing constraint corrects. The products of the experts take the dtype of the experts'
weights, or the one that autocast selects.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context that disables autocast, for computations that must stay float32."""
    return torch.autocast(device_type, enabled=False) if autocast_is_on(device_type) else nullcontext()


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast selects the dtype of products on a device; False where autocast does not exist ("meta")."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def router_dtype(x: Tensor) -> torch.dtype:
    """The dtype of router logits and gates: float32, or float64 for a float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def experts_dtype(A: Tensor) -> torch.dtype:
    """The dtype of the experts' products: that of their weights, or the one that autocast selects."""
    device_type = A.device.type
    if autocast_is_on(device_type) and A.dtype != torch.float64:  # autocast leaves float64 alone
        return torch.get_autocast_dtype(device_type)
    return A.dtype
