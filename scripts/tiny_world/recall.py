"""How much of the world a model knows: the share of cloze prompts that it completes with the right answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[tuple[str, str]],
    batch_size: int = 500,
) -> float:
    """Return the share of `(prompt, answer)` probes whose greedy continuation starts with the answer.

    An answer takes as many steps as it has tokens, so each batch holds prompts of one length and needs no padding.
    """
    model.eval()
    encoded = [(tokenizer(prompt)["input_ids"], answer) for prompt, answer in probes]
    encoded.sort(key=lambda probe: len(probe[0]))
    right = 0
    for batch in tqdm(_batches(encoded, batch_size), desc="recall", leave=False):
        ids = torch.tensor([prompt for prompt, _ in batch])
        steps = max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for _, answer in batch)
        texts = tokenizer.batch_decode(_continue(model, ids, steps))
        right += sum(text.strip().startswith(answer) for text, (_, answer) in zip(texts, batch, strict=True))
    return right / len(probes)


def _batches(encoded: list[tuple[list[int], str]], size: int) -> list[list[tuple[list[int], str]]]:
    """Cut probes that are sorted by length into batches of one length each."""
    batches: list[list[tuple[list[int], str]]] = []
    for probe in encoded:
        if not batches or len(batches[-1]) == size or len(batches[-1][0][0]) != len(probe[0]):
            batches.append([])
        batches[-1].append(probe)
    return batches


def _continue(model: PreTrainedModel, ids: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the `steps` most likely next tokens, one after the other, [batch, steps]."""
    cache, chosen = None, []
    for _ in range(steps):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        chosen.append(ids)
    return torch.cat(chosen, dim=1)
