"""How far a plain LoRA is from its adapter, on the answer tokens of samples.

Base model, adapter and LoRA see the same samples. Only hidden states of answer tokens are kept; logits exist for
TOKENS_AT_ONCE tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from loramoe.balance.constraint import IGNORE_INDEX
from loramoe.export.adapter import ActiveAdapter, ExportError, hidden_states, observe_layers
from loramoe.export.lora import Factors, as_plain_lora
from loramoe.ops import mixture

MODELS: Final = ("base", "adapter", "lora")
TOKENS_AT_ONCE: Final = 256  # three models times this times the vocabulary, in float32


def measure_distance(
    adapter: ActiveAdapter, factors: Factors, batches: Iterable[Mapping[str, Tensor]], progress: bool = True
) -> dict[str, Any]:
    """Measures a LoRA against its adapter on batches with `labels` (-100 outside of answers) and maybe `task_types`.

    Returns:
        "groups": for "answers", and for "answers of type T" of each task type, the number of samples and tokens, and
        of each model: kl, kl_p95: KL(adapter ‖ model) of the next-token distributions in nats per token, mean and 95th
        percentile; agreement: share of the tokens at which adapter and model have the same most likely token; accuracy:
        share of the samples whose whole answer greedy decoding gives; perplexity.
        "relative_error": √(Σ‖LoRA(x) − mixture(x)‖² / Σ‖mixture(x)‖²) of each layer, given the adapter's input.

    Raises:
        ExportError: If there are no answers, or logits are not finite.
    """
    squares = {key: torch.zeros(2, dtype=torch.float64) for key in adapter.layers}

    def add_error(key: str, x: Tensor, gates: Tensor) -> None:
        layer, dtype = adapter.layers[key], gates.dtype
        _, A, B = (weight.to(dtype) for weight in layer.weights(adapter.name))
        exact = mixture(x.to(dtype), gates, A, B, layer.scaling[adapter.name])
        A, B = (part.to(dtype) for part in factors[key])
        error = x.to(dtype) @ A.T @ B.T - exact
        squares[key] += torch.stack([error.square().sum(), exact.square().sum()]).double().cpu()

    tables: list[dict[str, Tensor]] = []
    samples = 0
    for batch in tqdm(batches, desc="distance", disable=not progress, leave=False):
        contexts = _contexts(adapter, factors) | {"adapter": observe_layers(adapter, batch, add_error)}
        sample_N, position_N = (batch["labels"][:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        hidden = {}
        for model, context in contexts.items():
            with context:
                hidden[model] = hidden_states(adapter, batch)[sample_N, position_N]
        table = _compare(adapter, factors, hidden, batch["labels"][sample_N, position_N + 1])
        types = {"type": batch["task_types"][sample_N]} if "task_types" in batch else {}
        tables.append({"sample": sample_N + samples, **types, **table})
        samples += len(batch["labels"])
    if not sum(len(table["sample"]) for table in tables):
        raise ExportError("the samples hold no answer, or can be read only once. Give a list of samples with answers.")
    whole = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
    errors = {key: float((error / exact).sqrt()) if exact else 0.0 for key, (error, exact) in squares.items()}
    return {"groups": _groups(whole), "relative_error": errors}


def _contexts(adapter: ActiveAdapter, factors: Factors) -> dict[str, AbstractContextManager[Any]]:
    disabled = adapter.model.disable_adapter()
    return {"base": disabled, "adapter": nullcontext(), "lora": as_plain_lora(adapter, factors)}


def _compare(
    adapter: ActiveAdapter, factors: Factors, hidden: Mapping[str, Tensor], token_N: Tensor
) -> dict[str, Tensor]:
    """For each of N tokens and each model the KL, agreement, correctness and loss, [N, 3] on the CPU."""
    chunks: list[dict[str, Tensor]] = []
    for start in range(0, max(1, len(token_N)), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        log_p = {}
        for model, context in _contexts(adapter, factors).items():
            with context:
                log_p[model] = _logits(adapter, hidden[model][part]).float().log_softmax(-1)
        chunks.append(_compare_tokens(log_p, token_N[part].to(log_p["base"].device)))
    return {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}


def _logits(adapter: ActiveAdapter, hidden_ND: Tensor) -> Tensor:
    """Logits [N, V] by the base model's own forward pass, which may scale or cap what the head returns."""

    def replace(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden_ND[None]
        return output

    base = adapter.model.get_base_model()
    handle = base.base_model.register_forward_hook(replace)
    try:
        logits: Tensor = base(input_ids=torch.zeros(1, 1, dtype=torch.long, device=base.device), use_cache=False).logits
    finally:
        handle.remove()
    return logits[0]


def _compare_tokens(log_p: Mapping[str, Tensor], token_N: Tensor) -> dict[str, Tensor]:
    exact = log_p["adapter"]
    columns: dict[str, list[Tensor]] = {"kl": [], "agrees": [], "right": [], "loss": []}
    for model in MODELS:
        found = log_p[model]
        kl_N = (exact.exp() * (exact - found)).sum(-1)
        if not kl_N.isfinite().all():
            raise ExportError(f"logits of the {model} are not finite. Set --dtype float32, or train it again.")
        columns["kl"].append(kl_N.clamp(min=0))  # rounding may leave less than 0
        columns["agrees"].append(found.argmax(-1) == exact.argmax(-1))
        columns["right"].append(found.argmax(-1) == token_N)
        columns["loss"].append(-found.gather(-1, token_N[:, None])[:, 0])
    return {name: torch.stack(values, dim=-1).double() for name, values in columns.items()}


def _groups(table: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    chosen = {"answers": torch.ones_like(table["sample"], dtype=torch.bool)}
    for kind in torch.unique(table["type"]).tolist() if "type" in table else ():
        chosen[f"answers of type {kind}"] = table["type"] == kind
    return {name: _group({key: values[mask] for key, values in table.items()}) for name, mask in chosen.items()}


def _group(table: Mapping[str, Tensor]) -> dict[str, Any]:
    samples, index_N = torch.unique(table["sample"], return_inverse=True)
    right_M3 = torch.ones(len(samples), len(MODELS), dtype=torch.float64)
    right_M3.scatter_reduce_(0, index_N[:, None].expand_as(table["right"]), table["right"], "amin")
    measures = {"kl": table["kl"].mean(0), "kl_p95": table["kl"].quantile(0.95, dim=0)}
    measures |= {"agreement": table["agrees"].mean(0), "accuracy": right_M3.mean(0)}
    measures |= {"perplexity": table["loss"].mean(0).exp()}
    scores = {model: {name: float(value[i]) for name, value in measures.items()} for i, model in enumerate(MODELS)}
    return {"samples": len(samples), "tokens": len(index_N), **scores}
