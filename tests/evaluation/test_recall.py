"""Recall: facts that a model continues with their answers, whatever the batch, the padding side or the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import DatasetError
from loramoe.evaluation.recall import Probe, prompt_ids, read_probes, recall


@pytest.fixture
def known(tiny_task: Any) -> Any:
    """A model, its tokenizer, and for prompts of different lengths its next three words, found one by one."""
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    found = {}
    for length in range(1, 8):
        prompt = " ".join(f"w{length + n}" for n in range(length))
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        for _ in range(3):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        found[prompt] = tokenizer.decode(ids[0, -3:], skip_special_tokens=True)
    return model, tokenizer, found


def test_hits_and_misses_in_batches_of_different_lengths(known: Any) -> None:
    model, tokenizer, found = known
    tokenizer.padding_side = "right"
    model.train()
    prompt, text = next(iter(found.items()))
    first, second = text.split()[:2]
    probes = [Probe(prompt, [text]) for prompt, text in found.items()]
    probes += [Probe(prompt, answers) for answers in ([f" {first} "], ["w59 w58"], [second], [first[:-1]])]
    expected = [True] * len(found) + [True, False, second == first, False]
    assert recall(model, tokenizer, probes, batch_size=4, progress=False) == expected
    assert model.training


def test_an_end_token_that_the_tokenizer_adds_is_left_out(known: Any) -> None:
    tokenizer = known[1]
    frame = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = frame
    assert (tokenizer("w1").input_ids, prompt_ids(tokenizer, "w1")) == ([1, 5, 2], [1, 5])


def test_probes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    file.write_text('{"prompt": "a", "answer": "b", "more": 1}\n')
    assert read_probes(file) == [Probe("a", ["b"])]
    file.write_text(json.dumps({"instruction": "a", "output": "b"}))
    with pytest.raises(DatasetError, match=r"probes.jsonl, line 1: expected a probe"):
        read_probes(file)
