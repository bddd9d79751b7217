"""What a model makes of given continuations: their log-likelihood, and whether greedy decoding would give them.

A request is one sequence: its prompt, then its candidates. Attention mask and positions turn it into a tree: each
candidate sees the prompt and itself alone, so a prompt is read once. Logits are computed only where a candidate's token
is predicted. Letters: B sequences, S tokens, T predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from experiments.train import Sample

TOKENS_PER_BATCH: Final = 2_048


class Request(NamedTuple):
    """Token ids of a prompt and of its candidates; `right` is the index of the right one."""

    prompt: list[int]
    candidates: list[list[int]]
    right: int = 0

    @property
    def length(self) -> int:
        """How many tokens the model reads: the last one of a candidate predicts nothing."""
        return len(self.prompt) + sum(len(candidate) - 1 for candidate in self.candidates)


class Answers(NamedTuple):
    """For each request: the loss in nats, the tokens of the right candidate, and whether it is right.

    Attributes:
        loss: −log-likelihood of the right candidate; with several candidates −log of its share among them.
        tokens: Tokens of the right candidate.
        right: With one candidate, whether each of its tokens is the likeliest; with several, whether it is the
            likeliest of them.
    """

    loss: NDArray[np.float64]
    tokens: NDArray[np.int64]
    right: NDArray[np.bool_]


def as_request(sample: Sample) -> Request:
    """Make a request of one candidate from a sample."""
    return Request(sample.prompt, [sample.target])


@torch.inference_mode()
def answer(model: Any, requests: Sequence[Request]) -> Answers:
    """Measure the answers to requests.

    Args:
        model: A causal language model, with or without an adapter, in eval mode.
        requests: What to ask.

    Returns:
        The answers, in the order of the requests.
    """
    loss, right = np.zeros(len(requests)), np.zeros(len(requests), dtype=bool)
    for batch in _batches(requests):
        asked = [requests[index] for index in batch]
        for index, (logp, likeliest) in zip(batch, _candidates(model, asked), strict=True):
            correct = requests[index].right
            several = len(logp) > 1
            loss[index] = logp.logsumexp(dim=0) - logp[correct] if several else -logp[0]
            right[index] = int(logp.argmax()) == correct if several else bool(likeliest[0])
    tokens = np.array([len(request.candidates[request.right]) for request in requests])
    return Answers(loss, tokens, right)


@torch.inference_mode()
def kl_to_base(model: Any, base: Any, requests: Sequence[Request]) -> float:
    """KL(base ‖ model) in nats, mean over the tokens of the first candidates.

    Args:
        model: The tuned model, in eval mode.
        base: The base model, likewise.
        requests: Texts: the next-token distributions are compared where the candidates' tokens are predicted.

    Returns:
        The mean divergence.
    """
    total, count = 0.0, 0
    for batch in _batches(requests):
        asked = [requests[index]._replace(candidates=requests[index].candidates[:1], right=0) for index in batch]
        tree = layout(asked)
        p_TV, q_TV = (_logits(each, tree).log_softmax(dim=-1) for each in (base, model))
        total += float((p_TV.exp() * (p_TV - q_TV)).sum())
        count += len(p_TV)
    return total / count


def _batches(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Requests of about the same length together, the longest first."""
    order = sorted(range(len(requests)), key=lambda index: requests[index].length, reverse=True)
    while order:
        size = max(1, TOKENS_PER_BATCH // requests[order[0]].length)
        yield order[:size]
        order = order[size:]


class Layout(NamedTuple):
    """A batch of trees.

    Attributes:
        ids_BS: Token ids.
        positions_BS: Position of each token in the text that it belongs to.
        branch_BS: 0 for a prompt, n for the n-th candidate, −1 for padding.
        source_T: Index into B·S of the position that predicts each token of the candidates.
        label_T: That token.
        owner_T: Which candidate of the batch it belongs to.
    """

    ids_BS: Tensor
    positions_BS: Tensor
    branch_BS: Tensor
    source_T: Tensor
    label_T: Tensor
    owner_T: Tensor


def layout(requests: Sequence[Request]) -> Layout:
    """Lay requests out as trees, one a sequence."""
    longest = max(request.length for request in requests)
    rows, predicted, owner = list[list[list[int]]](), list[tuple[int, int, int]](), 0
    for row, (prompt, candidates, _) in enumerate(requests):
        trunk = len(prompt)
        ids, positions, branch = list(prompt), list(range(trunk)), [0] * trunk
        for number, candidate in enumerate(candidates, start=1):
            start, more = len(ids), len(candidate) - 1
            sources = [trunk - 1, *range(start, start + more)]  # the prompt's last token predicts the first one
            predicted += [(row * longest + s, token, owner) for s, token in zip(sources, candidate, strict=True)]
            ids += candidate[:-1]
            positions += range(trunk, trunk + more)
            branch += [number] * more
            owner += 1
        fill = longest - len(ids)
        rows.append([ids + [0] * fill, positions + [0] * fill, branch + [-1] * fill])
    return Layout(*torch.tensor(rows).unbind(dim=1), *torch.tensor(predicted).unbind(dim=1))


def _logits(model: Any, tree: Layout) -> Tensor:
    """Logits at the positions that predict the candidates' tokens, [T, V], float32."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    size = tree.ids_BS.shape[1]
    before_SS = torch.ones(size, size, dtype=torch.bool).tril()
    branch = tree.branch_BS
    visible_BSS = before_SS & ((branch[:, None] == 0) | (branch[:, None] == branch[:, :, None]))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32  # of the scores
    mask = torch.zeros(visible_BSS.shape, dtype=dtype).masked_fill(~visible_BSS, torch.finfo(dtype).min)[:, None]
    hidden_BSD = base.get_decoder()(
        input_ids=tree.ids_BS, position_ids=tree.positions_BS, attention_mask=mask, use_cache=False
    ).last_hidden_state
    source, place_T = tree.source_T.unique(return_inverse=True)  # candidates share the prompt's last position
    with torch.autocast("cpu", enabled=False):  # in bfloat16 many logits would be equal
        logits: Tensor = base.get_output_embeddings()(hidden_BSD.flatten(0, 1)[source].float())
    return logits[place_T]


def _candidates(model: Any, requests: Sequence[Request]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each request, log-likelihood of each candidate and whether all of its tokens are the likeliest."""
    tree = layout(requests)
    logits_TV = _logits(model, tree)
    logp_T = logits_TV.log_softmax(dim=-1).gather(1, tree.label_T[:, None])[:, 0].double()
    wrong_T = (logits_TV.argmax(dim=-1) != tree.label_T).double()
    count = int(tree.owner_T[-1]) + 1
    logp_N, wrong_N = (
        torch.zeros(count, dtype=torch.float64).index_add_(0, tree.owner_T, v) for v in (logp_T, wrong_T)
    )
    sizes = [len(request.candidates) for request in requests]
    yield from zip(logp_N.split(sizes), (wrong_N == 0).split(sizes), strict=True)
