"""Which dtype the sums of the mixture are made in, under autocast and without it.

The router and its softmax stay float32 whatever the model's dtype (float64 stays float64): rounding the gates to
bfloat16 hides the small imbalances that the balancing constraint is there to see. The experts' products take the dtype
of the experts' weights, or the one that autocast says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which autocast rounds nothing, for the sums that must stay float32.

    Args:
        device_type: Type of the device that computes; some, such as "meta", know no autocast at all.

    Returns:
        The context.
    """
    return torch.autocast(device_type, enabled=False) if autocast_is_on(device_type) else nullcontext()


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast chooses the dtype of products on a device.

    Args:
        device_type: Type of the device that computes.

    Returns:
        False also where autocast is not known.
    """
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def router_dtype(x: Tensor) -> torch.dtype:
    """The dtype of router logits and gates.

    Args:
        x: Input of the router.

    Returns:
        float32, or float64 for a float64 input.
    """
    return torch.promote_types(x.dtype, torch.float32)


def experts_dtype(A: Tensor) -> torch.dtype:
    """The dtype of the experts' products.

    Args:
        A: A weight of the experts.

    Returns:
        The dtype that autocast has chosen, or that of the weight.
    """
    device_type = A.device.type
    if autocast_is_on(device_type) and A.dtype != torch.float64:  # autocast leaves float64 alone
        return torch.get_autocast_dtype(device_type)
    return A.dtype
