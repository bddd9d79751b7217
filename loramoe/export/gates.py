"""The mean gates of each adapted linear over calibration rows, and how much the gates vary around them.

Of all constants c, the mean is the one that minimises E‖g − c‖² over the tokens, which is why it is what the export
puts in the gates' place. What is left, E‖g − ḡ‖², is what no constant can express: the `spread`.

Every real token counts once, those of the prompt too: they pass through the exported linears like any other, and what
they leave in the attention's keys and values is what the answer is made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from loramoe.balance.constraint import rows_as_samples
from loramoe.export.adapted import Adapted, ExportError, adapted, in_evaluation, on_device_of, real_tokens, run


@dataclass(frozen=True)
class GateStatistics:
    """The gates of one linear over all calibration tokens.

    Attributes:
        mean_E: Mean gate of each expert, ḡ, [E] float64 on the CPU; sums to 1.
        spread: Coefficient of variation √(E‖g − ḡ‖²) / ‖ḡ‖; 0 where the gates do not depend on the input.
        tokens: Number of tokens.
    """

    mean_E: Tensor
    spread: float
    tokens: int


def mean_gates(model: Any, batches: Iterable[Mapping[str, Any]], *, progress: bool = True) -> dict[str, GateStatistics]:
    """Runs the model over calibration rows, and averages the gates of its active adapter.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.
        batches: Batches with `input_ids` [B, S] and, unless every token is real, `attention_mask` [B, S].
        progress: Show a progress bar.

    Returns:
        Statistics of each adapted linear, by its name in the base model.

    Raises:
        ExportError: If the adapter is none that can be exported, there are no tokens, a linear saw other tokens than
            the batch has, or gates are not finite.
    """
    adapter = adapted(model)
    sums: dict[str, Tensor] = {}
    with in_evaluation(model), torch.inference_mode():
        for batch in tqdm(batches, desc="mean gates", disable=not progress, leave=False):
            on_device = on_device_of(model, batch)
            with gates_kept(adapter) as kept:
                run(model, on_device)
            for linear in adapter.layers:
                gates_NE = gates_of(kept, linear, real_tokens(on_device))
                sums[linear] = sums.get(linear, 0.0) + _moments(gates_NE)
    if not sums:
        raise ExportError("the calibration rows are empty: there are no gates to average. Give at least one batch.")
    return {linear: _statistics(linear, moments.cpu()) for linear, moments in sums.items()}


@contextmanager
def gates_kept(adapter: Adapted) -> Iterator[dict[str, Tensor]]:
    """Within, the gates of each layer's forward are kept.

    Args:
        adapter: The adapter.

    Yields:
        The gates [..., E] of each layer that was called, by its name.
    """
    kept: dict[str, Tensor] = {}
    handles = [
        layer.loramoe_experts[adapter.name].register_forward_hook(partial(_keep_gates, kept, name))
        for name, layer in adapter.layers.items()
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep_gates(
    kept: dict[str, Tensor], name: str, experts: nn.Module, args: Any, output: tuple[Tensor, Tensor]
) -> None:
    if name in kept:
        raise ExportError(
            f"{name} was called twice in one forward pass, as the shared layers of ALBERT are: which gates count is "
            "not known. Choose an adapter without such layers."
        )
    kept[name] = output[1]


def gates_of(kept: Mapping[str, Tensor], linear: str, real_BS: Tensor) -> Tensor:
    """The gates of a layer that were kept, of the real tokens.

    Args:
        kept: What `gates_kept` yielded.
        linear: Name of the layer.
        real_BS: Which tokens of the batch are real, bool [B, S].

    Returns:
        Gates [N, E] of the N real tokens, in float32 or float64.

    Raises:
        ExportError: If the linear did not see each token of the batch once.
    """
    gates, samples = kept.get(linear), rows_as_samples(real_BS)
    if gates is None or not samples.covers(gates):
        raise ExportError(
            f"{samples.token_mismatch_message(linear, gates)}: which of them are real is not known, so there is no "
            "mean gate. Such an adapter cannot be exported."
        )
    return gates.flatten(0, -2)[real_BS.flatten().to(gates.device)]


def _moments(gates_NE: Tensor) -> Tensor:
    """Float64 [E + 2]: the sum of the gates of each expert, the sum of all their squares, and the number of tokens."""
    gates_NE = gates_NE.double()
    return torch.cat([gates_NE.sum(0), gates_NE.square().sum()[None], gates_NE.new_tensor([len(gates_NE)])])


def _statistics(linear: str, moments: Tensor) -> GateStatistics:
    *_, tokens = moments.tolist()
    if tokens == 0:
        raise ExportError("the calibration rows are empty: they hold no real token. Check their attention_mask.")
    mean_E, square = moments[:-2] / tokens, moments[-2] / tokens
    if not moments.isfinite().all():
        raise ExportError(f"{linear} has gates that are not finite: the adapter is damaged. Train or copy it again.")
    variance = (square - mean_E.square().sum()).clamp(min=0)  # rounding may leave less than nothing
    return GateStatistics(mean_E, float(variance.sqrt() / mean_E.norm()), int(tokens))
