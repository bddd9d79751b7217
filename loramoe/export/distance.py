"""How far a plain LoRA is from its adapter, on the answer tokens of samples.

Base model, adapter and LoRA see the same samples. Logits exist for TOKENS_AT_ONCE tokens at a time; a batch with more
answer tokens is computed more than once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from loramoe.balance.constraint import IGNORE_INDEX
from loramoe.export.lora import Batch, Factors, adapter_layers, as_plain_lora, logits_of, visit_layers
from loramoe.ops import mixture
from loramoe.utils import UsageError

MODELS: Final = ("base", "adapter", "lora")
TOKENS_AT_ONCE: Final = 512  # three models times this times the vocabulary, in float32


def answer_scores(model: Any, factors: Factors, batches: Iterable[Batch]) -> dict[str, dict[str, Any]]:
    """Compares a LoRA with its adapter on batches with `labels` (-100 outside of answers) and maybe `task_types`.

    Returns:
        For "answers", and for "answers of type T" of each task type, the number of samples and tokens, and of base
        model, adapter and LoRA: kl, kl_p95: KL(adapter ‖ model) of the next-token distributions in nats per token,
        mean and 95th percentile; agreement: share of the tokens at which adapter and model have the same most likely
        token; accuracy: share of the samples whose whole answer greedy decoding gives; perplexity.
    """
    tokens: list[tuple[Tensor, Tensor, Tensor]] = []  # sample, task type and scores of answer tokens
    samples = 0
    for batch in tqdm(batches, desc="distance", disable=None, leave=False):
        learnt_BS = batch["labels"][:, 1:] != IGNORE_INDEX
        types_B = batch.get("task_types", torch.full_like(batch["labels"][:, 0], -1))
        for positions in learnt_BS.any(0).nonzero()[:, 0].split(max(1, TOKENS_AT_ONCE // len(learnt_BS))):
            sample_N, index_N = learnt_BS[:, positions].nonzero(as_tuple=True)
            log_p = {}
            for name, context in _contexts(model, factors).items():
                with context:
                    log_p[name] = logits_of(model, batch, positions)[sample_N, index_N].float().log_softmax(-1)
            scores = _token_scores(log_p, batch["labels"][sample_N, positions[index_N] + 1])
            tokens.append((sample_N + samples, types_B[sample_N], scores))
        samples += len(learnt_BS)
    if not any(len(scores) for *_, scores in tokens):
        raise UsageError("the samples hold no answer, or can be read only once. Give a list of samples with answers.")
    sample_N, type_N, scores = (torch.cat(column) for column in zip(*tokens, strict=True))
    types = sorted(set(type_N.tolist()) - {-1})
    chosen = {"answers": type_N > -2} | {f"answers of type {t}": type_N == t for t in types}
    return {name: _group(sample_N[mask], scores[mask]) for name, mask in chosen.items()}


def _contexts(model: Any, factors: Factors) -> dict[str, AbstractContextManager[Any]]:
    return {"base": model.disable_adapter(), "adapter": nullcontext(), "lora": as_plain_lora(model, factors)}


def _token_scores(log_p: Mapping[str, Tensor], token_N: Tensor) -> Tensor:
    """For each of N tokens and each model the KL, agreement, correctness and loss, [N, 3, 4] on the CPU."""
    exact, scores = log_p["adapter"], []
    token_N = token_N.to(exact.device)
    for model in MODELS:
        found = log_p[model]
        kl_N = (exact.exp() * (exact - found)).sum(-1).clamp(min=0)  # rounding may leave less than 0
        if not kl_N.isfinite().all():
            raise UsageError(f"logits of the {model} are not finite. Set --dtype float32, or train it again.")
        best_N = found.argmax(-1)
        loss_N = -found.gather(-1, token_N[:, None])[:, 0]
        scores.append(torch.stack([kl_N, best_N == exact.argmax(-1), best_N == token_N, loss_N], dim=-1))
    return torch.stack(scores, dim=1).double().cpu()


def _group(sample_N: Tensor, scores: Tensor) -> dict[str, Any]:
    kl, agrees, right, loss = scores.unbind(-1)
    samples, index_N = torch.unique(sample_N, return_inverse=True)
    right_M3 = right.new_ones(len(samples), len(MODELS))
    right_M3.scatter_reduce_(0, index_N[:, None].expand_as(right), right, "amin")
    measures = {"kl": kl.mean(0), "kl_p95": kl.quantile(0.95, dim=0), "agreement": agrees.mean(0)}
    measures |= {"accuracy": right_M3.mean(0), "perplexity": loss.mean(0).exp()}
    scores_of = {model: {name: float(value[i]) for name, value in measures.items()} for i, model in enumerate(MODELS)}
    return {"samples": len(samples), "tokens": len(sample_N), **scores_of}


def relative_errors(model: Any, factors: Factors, batches: Iterable[Batch]) -> dict[str, float]:
    """Measures √(Σ‖LoRA(x) − mixture(x)‖² / Σ‖mixture(x)‖²) of each layer, given the adapter's input."""
    layers, name = adapter_layers(model), model.active_adapter
    squares = {key: torch.zeros(2, dtype=torch.float64) for key in layers}

    def add(key: str, x: Tensor, gates: Tensor) -> None:
        x = x.to(gates)
        _, A, B = (weight.to(gates) for weight in layers[key].weights(name))
        exact = mixture(x, gates, A, B, layers[key].scaling[name])
        A, B = (factor.to(gates) for factor in factors[key])
        error = x @ A.T @ B.T - exact
        squares[key] += torch.stack([error.square().sum(), exact.square().sum()]).double().cpu()

    visit_layers(model, batches, add, "relative error")
    return {key: float((error / exact).sqrt()) if exact else 0.0 for key, (error, exact) in squares.items()}
