"""How likely a model finds answers.

A prompt is read once, whatever the number of answers that are tried behind it: its keys and values stay in the cache
and are laid out again for each candidate. So logits are made of the candidates alone, which is what takes the memory
where a vocabulary is large. Prompts are padded on the left and candidates on the right, which puts all real tokens of a
sequence in one piece.

Shape letters: P prompts, N candidates of all of them, S tokens of a prompt but its last, C tokens of a candidate, V
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from loramoe.data import IGNORE_INDEX
from loramoe.decoding import pad_left
from loramoe.evaluation.requests import Request
from loramoe.utils import UsageError


def log_likelihoods(
    model: Any, requests: Sequence[Request], batch_size: int = 32, progress: bool = True
) -> list[list[float]]:
    """Sums the log-probabilities of each candidate's tokens.

    Args:
        model: A causal language model, with or without an adapter, in evaluation mode.
        requests: Prompts and their candidates.
        batch_size: Prompts that are read at once, with all of their candidates.
        progress: Show a progress bar.

    Returns:
        For each request a figure for each candidate, in nats; 0 is certain.

    Raises:
        UsageError: If a figure is not finite.
    """
    scores: dict[int, list[float]] = {}
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt), reverse=True)
    with tqdm(total=len(order), desc="likelihood", unit="row", disable=not progress, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            scores |= zip(batch, _score([requests[index] for index in batch], model), strict=True)
            bar.update(len(batch))
    return [scores[index] for index in range(len(requests))]


@torch.inference_mode()
def _score(requests: Sequence[Request], model: Any) -> list[list[float]]:
    owners = [number for number, request in enumerate(requests) for _ in request.targets]
    owner_N = torch.tensor(owners, device=model.device)
    cache, mask_PS = _read_prompts(model, [request.prompt[:-1] for request in requests])
    if cache is not None:
        cache.reorder_cache(owner_N)
    targets = [target for request in requests for target in request.targets]
    labels_NC = _pad_right(targets, IGNORE_INDEX, model.device)
    # A candidate's token is predicted from the one before it: the first from the prompt's last.
    ids = [[*requests[owner].prompt[-1:], *target[:-1]] for owner, target in zip(owners, targets, strict=True)]
    mask_NSC = torch.cat([mask_PS[owner_N], (labels_NC != IGNORE_INDEX).long()], dim=1)
    positions_NC = _positions(mask_NSC)[:, mask_PS.shape[1] :]
    inputs = {"input_ids": _pad_right(ids, 0, model.device), "attention_mask": mask_NSC, "position_ids": positions_NC}
    logits_NCV = model(**_known(model, past_key_values=cache, use_cache=True, **inputs)).logits
    loss_NC = F.cross_entropy(logits_NCV.mT.to(_at_least_float(logits_NCV)), labels_NC, reduction="none")
    sums_N = -loss_NC.double().sum(dim=1)
    if not sums_N.isfinite().all():
        raise UsageError(
            f"expected finite log-likelihoods, got {sums_N[~sums_N.isfinite()][0].item()} from logits in "
            f"{logits_NCV.dtype}. Load the model with --torch_dtype float32 or bfloat16, or mend its weights if it is."
        )
    figures = iter(sums_N.tolist())
    return [[next(figures) for _ in request.targets] for request in requests]


def _read_prompts(model: Any, prompts: Sequence[list[int]]) -> tuple[Any, Tensor]:
    """The cache of prompts, None where they are empty, and their mask [P, S]."""
    ids_PS, mask_PS = pad_left(prompts, 0, model.device)
    if not ids_PS.shape[1]:
        return None, mask_PS.long()
    inputs = {"input_ids": ids_PS, "attention_mask": mask_PS, "position_ids": _positions(mask_PS)}
    return model(**_known(model, use_cache=True, logits_to_keep=1, **inputs)).past_key_values, mask_PS


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _pad_right(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)


def _at_least_float(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _known(model: Any, **inputs: Any) -> dict[str, Any]:
    """Without those inputs that the forward of this architecture does not have, such as positions where it has none."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    names = inspect.signature(base.forward).parameters
    return {name: value for name, value in inputs.items() if name in names}
