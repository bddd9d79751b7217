"""What one forward pass of an adapted model collects, in a context of its own thread.

The hooks of the base model open and close a pass (`hooks.py`), the layers add their gates to it (`layer.py`). Passes
nest: a model that is called within the forward of another has its own. Outside of a pass, as when gradient
checkpointing runs a layer again during backward, nothing is collected.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from loramoe.balance import Membership


class ForwardPass:
    """The gates of the adapted layers in one forward pass of a model, which may be within that of another.

    The gates themselves, and nothing computed from them: within a checkpointed layer autograd may keep no more in the
    forward than when it runs the layer again.
    """

    def __init__(self, model: nn.Module, outer: ForwardPass | None) -> None:
        self.model, self.outer = model, outer
        self.membership: Membership | None = None  # None where the batch has no task types
        self.task_types_M: Tensor | None = None
        self.gates: dict[str, dict[str, Tensor]] = {}  # [B, S, E] or [B·S, E] by adapter and name of the layer
        self.untrained: list[str] = []  # layers whose router is to be trained, and whose gates carry no gradient

    def add(self, adapter_name: str, layer: str, gates: Tensor, router: Tensor) -> None:
        """Add the gates of one layer."""
        if self.membership is None:
            return
        if not self.membership.covers(gates):
            raise ValueError(
                f"{self.membership.token_mismatch_message(layer, gates)}: the constraint needs layers that see each "
                "token once, row by row. Name it in exclude_modules, or give no task_types."
            )
        by_layer = self.gates.setdefault(adapter_name, {})
        if layer in by_layer:
            raise ValueError(
                f"{layer or 'a layer'} was called twice in one forward pass, as the shared layers of ALBERT are. Name "
                "it in exclude_modules, or give no task_types and set blc_weight=0."
            )
        by_layer[layer] = gates
        if router.requires_grad and not gates.requires_grad:
            self.untrained.append(layer)


class _OfThread(threading.local):
    """The innermost pass of a thread, and where `collect_aux_loss` wants the constraint."""

    def __init__(self) -> None:  # in each thread; torch.compile needs the attributes to exist before it traces
        self.current: ForwardPass | None = None
        self.collected: list[Tensor] | None = None


_of_thread = _OfThread()


def current_pass() -> ForwardPass | None:
    """Return the innermost forward pass of this thread, if the adapted model is in one."""
    return _of_thread.current


def open_pass(model: nn.Module) -> ForwardPass:
    """Open the pass of a model's forward."""
    outer = _of_thread.current
    if outer is not None and outer.model is model:  # left by a forward that an interrupt ended
        outer = outer.outer
    _of_thread.current = ForwardPass(model, outer)
    return _of_thread.current


def close_pass(model: nn.Module) -> ForwardPass | None:
    """Close the pass of a model's forward and return it; None if the forward failed before it opened one."""
    closed = _of_thread.current
    while closed is not None and closed.model is not model:  # left by a nested forward that an interrupt ended
        closed = closed.outer
    if closed is not None:
        _of_thread.current = closed.outer
    return closed


@contextmanager
def collect_aux_loss() -> Iterator[list[Tensor]]:
    """Collect the weighted constraint of each training forward in this thread, instead of adding it to the loss.

    For a loss that is computed from something else than `outputs.loss`.

    Yields:
        A list to which each forward with task types appends one scalar, before its share of the step.
    """
    before, _of_thread.collected = _of_thread.collected, []
    try:
        yield _of_thread.collected
    finally:
        _of_thread.collected = before


def collected_aux_losses() -> list[Tensor] | None:
    """Return the list of the `collect_aux_loss` around this code, or None outside of one."""
    return _of_thread.collected
