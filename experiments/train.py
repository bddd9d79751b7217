"""The training loop, the same for every method: AdamW, some warm-up steps, then a constant learning rate.

The rate is constant so that one run gives the whole axis of training data: at each checkpoint the model is what a
shorter run would have given. The samples of a step are in ordinary random order, in one row without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from loramoe import last_balance

WARMUP_STEPS: Final = 10
BATCH_SIZE: Final = 16
IGNORED: Final = -100


class Sample(NamedTuple):
    """A training sample: token ids of prompt and target, and its task type (1 knowledge, 0 downstream)."""

    prompt: list[int]
    target: list[int]
    task_type: int


def encode(tokenizer: Any, prompt: str, target: str, task_type: int = 0) -> Sample:
    """Encode a sample as `prompt </s> target </s>`; the tokenizer adds its own first token, if it has one."""
    end = [tokenizer.eos_token_id]
    return Sample(
        tokenizer(prompt)["input_ids"] + end, tokenizer(target, add_special_tokens=False)["input_ids"] + end, task_type
    )


def packed(samples: Sequence[Sample], with_types: bool) -> dict[str, Any]:
    """Put samples into one row without padding; `position_ids` separate them."""
    ids = [token for sample in samples for token in (*sample.prompt, *sample.target)]
    labels = [token for sample in samples for token in (*[IGNORED] * len(sample.prompt), *sample.target)]
    positions = [place for sample in samples for place in range(len(sample.prompt) + len(sample.target))]
    row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    types = {"task_types": torch.tensor([sample.task_type for sample in samples])} if with_types else {}
    return {**{name: torch.tensor([values]) for name, values in row.items()}, **types, "use_cache": False}


def step(model: Any, optimizer: torch.optim.Optimizer, samples: Sequence[Sample]) -> None:
    """Take one optimizer step; gradients are clipped at norm 1."""
    model(**packed(samples, with_types=hasattr(model, "peft_config"))).loss.backward()
    trained: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def train(
    model: Any,
    samples: Iterable[Sample],
    rate: float,
    checkpoints: Sequence[int],
    at_checkpoint: Callable[[int], bool | None],
) -> dict[str, list[float]]:
    """Train until the last checkpoint.

    Args:
        model: What `apply_method` returned.
        samples: Training samples, in order; enough of them for the last checkpoint.
        rate: Learning rate after the warm-up.
        checkpoints: Numbers of training tokens, ascending.
        at_checkpoint: Called with each number, once that many tokens are trained on; the model is then in eval mode.
            True ends the training.

    Returns:
        Mean gate weight of the experts of type 1, by task type of the samples, over the last tenth of the tokens;
        empty without experts.

    Raises:
        ValueError: If the samples end before the last checkpoint.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / WARMUP_STEPS))
    tokens, due, shares = 0, list(checkpoints), list[Tensor]()
    model.train()
    for batch in _batches(samples):
        step(model, optimizer, batch)
        warmup.step()
        tokens += sum(len(sample.prompt) + len(sample.target) for sample in batch)
        if tokens > 0.9 * checkpoints[-1]:
            shares += _group_shares(model)
        while due and tokens >= due[0]:
            model.eval()
            due = [] if at_checkpoint(due.pop(0)) else due
            model.train()
        if not due:
            break
    model.eval()
    if due:
        raise ValueError(f"the samples hold {tokens} tokens; training needs {checkpoints[-1]}. Make more samples.")
    return {"knowledge_group_by_type": torch.stack(shares).mean(dim=0).tolist()} if shares else {}


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH_SIZE:
            yield batch
            batch = []


def _group_shares(model: Any) -> list[Tensor]:
    """Gate weight of the experts of type 1, by task type, mean over the layers; only of a batch with both types."""
    balance = last_balance(model)
    if balance is None or balance.task_types != (0, 1):
        return []
    knowledge = torch.tensor([kind == 1 for kind in balance.expert_types])
    return [balance.gate_TLE[:, :, knowledge].sum(dim=-1).mean(dim=-1)]
