"""How far an export is from its mixture: token by token over held-out rows, beside the base model as a yardstick.

Three sides see the same rows: the base model, the mixture (the adapter itself) and the export. At every token they give
a distribution of the next one. KL(mixture ‖ export) says how much of the mixture's is lost; KL(mixture ‖ base) is what
there was to lose. An answer counts as right where each of its tokens, the one that ends it included, is the likeliest
given those before it: exactly then would greedy decoding have said it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from loramoe.data import IGNORE_INDEX
from loramoe.export.adapted import ExportError, adapted, in_evaluation, on_device_of, real_tokens, run
from loramoe.export.linear_error import LinearErrors
from loramoe.export.lora import as_plain_lora

BASE, MIXTURE, EXPORT = "base", "mixture", "export"
SIDES: Final = (BASE, MIXTURE, EXPORT)
ALL_TOKENS, ANSWERS = "all tokens", "answers"

# Stands for the task type of rows that have none; no row of our data format has this one.
NO_TYPE: Final = -(2**63)

# Tokens whose distributions are compared at once: three times this, times the vocabulary, in float32.
TOKENS_AT_ONCE: Final = 512


@dataclass(frozen=True)
class Divergence:
    """How far a side is from the mixture, over some tokens.

    Attributes:
        mean: Mean of KL(mixture ‖ side), in nats per token.
        p95: Its 95th percentile.
        max: Its largest value.
        agreement: Share of the tokens at which both find the same token likeliest.
    """

    mean: float
    p95: float
    max: float
    agreement: float


@dataclass(frozen=True)
class Answers:
    """How well a side gives the answers of some rows.

    Attributes:
        accuracy: Share of the rows whose whole answer greedy decoding would say.
        token_accuracy: Share of the answers' tokens that are the likeliest.
        perplexity: Of the answers' tokens.
    """

    accuracy: float
    token_accuracy: float
    perplexity: float


@dataclass(frozen=True)
class Group:
    """Some of the tokens, such as those of the answers.

    Attributes:
        rows: Number of rows that they are in.
        tokens: Number of tokens.
        divergence: Of the sides "base" and "export", from the mixture.
        answers: Of all sides; empty where the tokens are not those of answers.
    """

    rows: int
    tokens: int
    divergence: dict[str, Divergence]
    answers: dict[str, Answers]


@dataclass(frozen=True)
class Distance:
    """How far an export is from its mixture.

    Attributes:
        groups: "answers", with task types also "answers of type T" for each of them, and "all tokens".
        relative_error: Of what the experts of each linear add, by its name in the base model; see `LinearErrors`.
    """

    groups: dict[str, Group]
    relative_error: dict[str, float]

    @property
    def lost(self) -> float | None:
        """KL(mixture ‖ export) / KL(mixture ‖ base) over the answers; None where the mixture is the base model.

        0 is as near as the mixture itself, 1 as far as the base model.
        """
        divergence = self.groups[ANSWERS].divergence
        return divergence[EXPORT].mean / divergence[BASE].mean if divergence[BASE].mean else None


def distance(
    model: Any, batches: Iterable[Mapping[str, Any]], mean_gates: Mapping[str, Tensor], *, progress: bool = True
) -> Distance:
    """Measures the export of the active adapter on rows with answers.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.
        batches: Batches with `input_ids` and `labels` [B, S] (-100 on what is no answer), unless every token is real
            `attention_mask` [B, S], and maybe `task_types` [B].
        mean_gates: Gates [E] of each adapted linear, by its name in the base model.
        progress: Show a progress bar.

    Returns:
        The distance.

    Raises:
        ExportError: If the adapter is none that can be exported, the rows hold no answers, or logits are not finite.
    """
    errors = LinearErrors(adapted(model), mean_gates)
    tables: list[dict[str, Tensor]] = []
    rows = 0
    with in_evaluation(model), torch.inference_mode():
        for batch in tqdm(batches, desc="distance", disable=not progress, leave=False):
            on_device = on_device_of(model, batch)
            where = _predicted(on_device, rows)
            rows += len(on_device["input_ids"])
            logits = _logits_of_sides(model, on_device, mean_gates, errors)
            tables.append({**where, **_compare(logits, where)})
    if not any(table["is_answer"].any() for table in tables):
        raise ExportError(
            "the rows to measure on hold no answers: no label differs from -100. Give rows with some, or raise "
            "max_seq_length if they all fill it."
        )
    whole = {name: torch.cat([table[name] for table in tables]) for name in tables[0]}
    return Distance(_groups(whole), errors.result())


def _predicted(batch: Mapping[str, Tensor], rows_before: int) -> dict[str, Tensor]:
    """The N tokens of a batch that another predicts: their row and its type, what predicts them, and if they answer."""
    ids_BS, real_BS = batch["input_ids"], real_tokens(batch)
    if "labels" not in batch or batch["labels"].shape != ids_BS.shape:
        raise ExportError(f"a batch to measure on must hold labels beside its input_ids {list(ids_BS.shape)}.")
    types_B = batch.get("task_types", ids_BS.new_full((len(ids_BS),), NO_TYPE))
    if len(types_B) != len(ids_BS):
        raise ExportError(f"task_types must hold one type for each row; got {len(types_B)} for {len(ids_BS)} rows.")
    predicted = real_BS[:, :-1] & real_BS[:, 1:]
    row_N, place_N = predicted.nonzero(as_tuple=True)
    return {
        "row": row_N.cpu() + rows_before,
        "place_in_batch": (row_N * ids_BS.shape[1] + place_N).cpu(),
        "token": ids_BS[:, 1:][predicted].cpu(),
        "type": types_B[row_N].cpu(),
        "is_answer": (batch["labels"][:, 1:][predicted] != IGNORE_INDEX).cpu(),
    }


def _logits_of_sides(
    model: Any, batch: Mapping[str, Tensor], mean_gates: Mapping[str, Tensor], errors: LinearErrors
) -> dict[str, Tensor]:
    """Logits [B·S, V] of each side."""
    ways = {
        MIXTURE: errors.of_forward(real_tokens(batch)),
        EXPORT: as_plain_lora(model, mean_gates),
        BASE: model.disable_adapter(),
    }
    logits = {}
    for side, way in ways.items():
        with way:
            logits[side] = run(model, batch).flatten(0, 1)
    return logits


def _compare(logits: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each of N predicted tokens what `_compare_some` says, on the CPU."""
    device = logits[MIXTURE].device
    chunks = [
        _compare_some(
            {side: values[place.to(device)].float().log_softmax(-1) for side, values in logits.items()},
            token.to(device),
        )
        for place, token in zip(
            *(torch.split(where[name], TOKENS_AT_ONCE) for name in ("place_in_batch", "token")), strict=True
        )
    ]
    return {name: torch.cat([chunk[name].cpu() for chunk in chunks]) for name in chunks[0]}


def _compare_some(log_p: Mapping[str, Tensor], token_N: Tensor) -> dict[str, Tensor]:
    """Divergences from the mixture, likeliest tokens and losses of each side, each [N].

    Args:
        log_p: Log-probabilities of the next token, [N, V], of each side.
        token_N: The token that came.

    Returns:
        `kl <side>`, `agrees <side>`, `right <side>` and `loss <side>`.
    """
    mixture_NV = log_p[MIXTURE]
    likeliest = {side: log_NV.argmax(-1) for side, log_NV in log_p.items()}
    values = {}
    for side, log_NV in log_p.items():
        kl_N = (mixture_NV.exp() * (mixture_NV - log_NV)).sum(-1)
        if not kl_N.isfinite().all():  # the mixture's own comes first, so that the side is the one at fault
            raise ExportError(
                f"logits of the {side} are not finite. Load the base model in float32; if they still are not, the "
                "adapter or the base model is damaged: train or copy it again."
            )
        values[f"kl {side}"] = kl_N.clamp(min=0)  # it never is below 0, but rounding may be
        values[f"agrees {side}"] = likeliest[side] == likeliest[MIXTURE]
        values[f"right {side}"] = likeliest[side] == token_N
        values[f"loss {side}"] = -log_NV.gather(-1, token_N[:, None]).squeeze(-1)
    return values


def _groups(tokens: Mapping[str, Tensor]) -> dict[str, Group]:
    is_answer = tokens["is_answer"]
    groups = {ANSWERS: _group(tokens, is_answer, answers=True)}
    for task_type in [t for t in torch.unique(tokens["type"]).tolist() if t != NO_TYPE]:
        of_type = is_answer & (tokens["type"] == task_type)
        if of_type.any():
            groups[f"answers of type {task_type}"] = _group(tokens, of_type, answers=True)
    return {**groups, ALL_TOKENS: _group(tokens, torch.ones_like(is_answer), answers=False)}


def _group(tokens: Mapping[str, Tensor], chosen: Tensor, answers: bool) -> Group:
    some = {name: values[chosen] for name, values in tokens.items()}
    row_N = torch.unique(some["row"], return_inverse=True)[1]
    return Group(
        rows=int(row_N.max()) + 1,
        tokens=len(row_N),
        divergence={side: _divergence(some[f"kl {side}"], some[f"agrees {side}"]) for side in (BASE, EXPORT)},
        answers={side: _answers(some, row_N, side) for side in SIDES} if answers else {},
    )


def _divergence(kl_N: Tensor, agrees_N: Tensor) -> Divergence:
    kl_N = kl_N.double().sort().values
    p95 = kl_N[math.ceil(0.95 * len(kl_N)) - 1]
    return Divergence(float(kl_N.mean()), float(p95), float(kl_N[-1]), float(agrees_N.double().mean()))


def _answers(some: Mapping[str, Tensor], row_N: Tensor, side: str) -> Answers:
    right_N = some[f"right {side}"].double()
    right_M = right_N.new_ones(int(row_N.max()) + 1).scatter_reduce(0, row_N, right_N, "amin")
    loss = some[f"loss {side}"].double().mean()
    return Answers(float(right_M.mean()), float(right_N.mean()), float(loss.exp()))
