"""How likely a model finds each candidate: one forward pass for all candidates of an item.

An item is one sequence, its prompt and then its candidates. The attention mask and the positions make of it a tree with
the prompt as its trunk: each candidate sees the prompt and itself alone. So a prompt is read once and needs no cache,
and a candidate's last token, which predicts nothing, is not read at all: of "true" and "false" only the prompt is. The
LM head, a fifth of the work with a vocabulary of 49,152, is computed only where a candidate's token is predicted.

Shape letters: B sequences, S tokens of the longest, T tokens of candidates that are asked for, N candidates, D hidden
size, V vocabulary, P positions that predict any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm

from experiments.knowledge_forgetting.real.items import Request

TOKENS_PER_BATCH = 2_048  # on one core 1,000 to 4,000 are equally fast; a GPU wants more


class Likelihood(NamedTuple):
    """Of one item: log-likelihood of each candidate in nats, its tokens, and whether all of these are the likeliest."""

    total: NDArray[np.float64]
    tokens: NDArray[np.int64]
    likeliest: NDArray[np.bool_]


@torch.inference_mode()
def likelihoods(
    model: Any, asked: Sequence[Request], tokens_per_batch: int = TOKENS_PER_BATCH, progress: bool = True
) -> list[Likelihood]:
    """Asks a model for all candidates of all requests.

    Args:
        model: A causal language model, with or without an adapter, in evaluation mode.
        asked: The requests.
        tokens_per_batch: Most tokens that are read at once, padding included.
        progress: Show a progress bar.

    Returns:
        For each request, what the model makes of its candidates.
    """
    told: dict[int, Likelihood] = {}
    with tqdm(total=len(asked), desc="scoring", unit="item", disable=not progress, leave=False) as bar:
        for batch in _batches(asked, tokens_per_batch):
            told |= zip(batch, _batch_likelihoods(model, [asked[index] for index in batch]), strict=True)
            bar.update(len(batch))
    return [told[index] for index in range(len(asked))]


def _length(request: Request) -> int:
    return len(request.prompt) + sum(len(candidate) - 1 for candidate in request.candidates)


def _batches(asked: Sequence[Request], tokens_per_batch: int) -> Iterator[list[int]]:
    """Requests of about the same length together; the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(asked)), key=lambda index: _length(asked[index]), reverse=True)
    while order:
        size = max(1, tokens_per_batch // _length(asked[order[0]]))
        yield order[:size]
        order = order[size:]


class Layout(NamedTuple):
    """A batch of trees.

    Attributes:
        ids_BS: Token ids.
        positions_BS: Position of each token in the text that it is part of.
        branch_BS: 0 for tokens of the prompt, n for those of the n-th candidate, -1 for padding.
        source_T: Which of the B·S positions predicts a token that is asked for.
        label_T: That token.
        owner_T: Which of the N candidates it belongs to.
    """

    ids_BS: Tensor
    positions_BS: Tensor
    branch_BS: Tensor
    source_T: Tensor
    label_T: Tensor
    owner_T: Tensor


def layout(asked: Sequence[Request]) -> Layout:
    """Lays requests out as trees, one a sequence."""
    longest = max(map(_length, asked))
    ids, positions, branches = ([[fill] * longest for _ in asked] for fill in (0, 0, -1))
    predicted: list[tuple[int, int, int]] = []
    owner = 0
    for row, request in enumerate(asked):
        trunk = len(request.prompt)
        ids[row][:trunk], positions[row][:trunk], branches[row][:trunk] = request.prompt, range(trunk), [0] * trunk
        start = trunk
        for branch, candidate in enumerate(request.candidates, start=1):
            end = start + len(candidate) - 1
            ids[row][start:end], branches[row][start:end] = candidate[:-1], [branch] * (end - start)
            positions[row][start:end] = range(trunk, trunk + end - start)
            sources = [trunk - 1, *range(start, end)]  # a first token is predicted from the prompt's last
            predicted += [(row * longest + s, label, owner) for s, label in zip(sources, candidate, strict=True)]
            start, owner = end, owner + 1
    return Layout(*map(torch.tensor, (ids, positions, branches)), *torch.tensor(predicted).unbind(dim=1))


def attention(branch_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that makes a sequence a tree: to be added to attention scores, [B, 1, S, S].

    Args:
        branch_BS: As in `Layout`.
        dtype: That of the scores.
    """
    size = branch_BS.shape[1]
    before_SS = torch.ones(size, size, dtype=torch.bool, device=branch_BS.device).tril()
    visible_BSS = before_SS & ((branch_BS[:, None] == 0) | (branch_BS[:, None] == branch_BS[:, :, None]))
    mask_BSS = torch.zeros(visible_BSS.shape, dtype=dtype, device=branch_BS.device)
    return mask_BSS.masked_fill(~visible_BSS, torch.finfo(dtype).min)[:, None]


def _batch_likelihoods(model: Any, asked: Sequence[Request]) -> Iterator[Likelihood]:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    tree = Layout(*(tensor.to(base.device) for tensor in layout(asked)))
    mask = attention(tree.branch_BS, _dtype(base))
    inputs = {"input_ids": tree.ids_BS, "position_ids": tree.positions_BS, "attention_mask": mask}
    hidden_BSD = base.get_decoder()(**inputs, use_cache=False).last_hidden_state
    source_P, place_T = tree.source_T.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    hidden_PD = hidden_BSD.flatten(0, 1)[source_P]
    log_probability_T, likeliest_T = _told(base.get_output_embeddings(), hidden_PD, place_T, tree.label_T)
    count = sum(len(request.candidates) for request in asked)
    total_N = torch.zeros(count, dtype=torch.float64, device=base.device)
    total_N.index_add_(0, tree.owner_T, log_probability_T.double())
    wrong_N = torch.zeros(count, device=base.device).index_add_(0, tree.owner_T, (~likeliest_T).float())
    tokens_N = np.array([len(candidate) for request in asked for candidate in request.candidates])
    ends = np.cumsum([len(request.candidates) for request in asked])[:-1]
    figures = total_N.cpu().numpy(), tokens_N, (wrong_N == 0).cpu().numpy()
    return map(Likelihood, *(np.split(figure, ends) for figure in figures))


def _told(head: Any, hidden_PD: Tensor, place_T: Tensor, label_T: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token that is asked for, and whether it is the likeliest.

    A logit of 15 in bfloat16 is known to 1/16, which would make ties of answers. So logits of the tokens themselves are
    computed again in float32; the sum over the vocabulary does not need it.
    """
    logits_PV = head(hidden_PD).float()
    own_T = (hidden_PD[place_T].float() * head.weight[label_T].float()).sum(dim=-1)
    return own_T - logits_PV.logsumexp(dim=-1)[place_T], logits_PV.argmax(dim=-1)[place_T] == label_T


def _dtype(model: Any) -> torch.dtype:
    """That of the attention scores: the autocast's if there is one."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
