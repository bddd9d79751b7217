"""The model card of the tiny base model, with the figures of the run that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# tiny_llama

A Llama-2-style `LlamaForCausalLM` of {parameters:,} parameters that knows an invented world of {facts:,} facts (who was
born where, which city is the capital of what) and nothing else. It is here so that LoRAMoE can be trained, tested and
measured in minutes on a CPU: how much of the world is left after fine-tuning is counted fact by fact.

- **Shape**: {layers} layers, hidden {hidden}, MLP {intermediate}, {heads} heads, {context} positions, untied
  embeddings, float32.
- **Tokenizer**: sentencepiece BPE with byte fallback, {vocabulary:,} pieces; `<unk>` 0, `<s>` 1, `</s>` 2 as in
  Llama 2, and `<pad>` 3. The chat template is `<s>` question `</s>` answer `</s>`, the form of the fine-tuning rows.
- **Trained on** {tokens:.1f} M tokens: statements of all facts, questions on 30 % of the subjects, and plain prose in
  the words of the downstream tasks.
- **Knows** {recalls} of the {facts:,} facts, in the three wordings it read them in (the greedy
  continuation of a cloze prompt starts with the answer as a whole word).
- **Cannot** solve the downstream tasks of `data/tiny_data`: that is what fine-tuning is for.

Made with torch {torch} by

    python -m tools.tiny_world.pretrain

The texts, the names and the weights are ours, under the Apache License 2.0.
"""


def write_card(folder: Path, model: LlamaForCausalLM, facts: int, tokens: int, recalls: Sequence[float]) -> None:
    """Write `README.md` of the model into `folder`.

    Args:
        folder: the model's folder.
        model: the trained model.
        facts: how many facts there are.
        tokens: how many tokens the model was trained on.
        recalls: share of the facts known, one number for each wording.
    """
    config = model.config
    text = CARD.format(
        parameters=model.num_parameters(),
        facts=facts,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        tokens=tokens / 1e6,
        recalls=", ".join(f"{share:.2%}" for share in recalls),
        torch=torch.__version__.split("+")[0],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
