"""A training loop without any trainer, which those of other libraries are compared with: same batches, same numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from loramoe.data import SftCollator

VOCAB, LEARNING_RATE = 40, 1e-2
LENGTHS = (9, 4, 6, 8, 5, 7, 3, 10)


def make_model() -> Any:
    """A Llama of 2 layers with 4 experts beside each linear of the MLP; every call makes the same."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=0, **sizes))
    return get_peft_model(base, make_config())


def make_config() -> LoraMoeConfig:
    """Without dropout, and with B away from zero, so that every weight gets a gradient from the first step on."""
    options = {"blc_weight": 0.5, "blc_alpha": 0.3, "lora_dropout": 0.0, "init_lora_weights": False}
    return LoraMoeConfig(lora_nums=4, task_type="CAUSAL_LM", **options)


def make_rows() -> list[dict[str, Any]]:
    """8 rows of different lengths, whose first two tokens are the prompt, of two task types in turn."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": i, "labels": [-100, -100, *i[2:]], "task_types": k % 2} for k, i in enumerate(ids)]


def word_tokenizer() -> Any:
    """A tokenizer of the model's vocabulary, for trainers that want one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def label_tokens(batch: dict[str, Tensor]) -> Tensor:
    """How many tokens of a batch are predicted."""
    return (batch["labels"][:, 1:] != -100).sum()


def plain_loop(
    model: Any,
    rows: list[dict[str, Any]],
    batch_size: int,
    accumulation: int,
    smoothing: float = 0.0,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[list[float], dict[str, Tensor]]:
    """One epoch of AdamW: each micro-batch's LM loss and constraint count by their share of the step's label tokens.

    The LM loss is a cross-entropy, smoothed, or a criterion of logits [N, V] and labels [N].
    """
    criterion = criterion or partial(cross_entropy, label_smoothing=smoothing)
    model = copy.deepcopy(model).train()
    trained = weights(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, weight_decay=0.0)
    collate = SftCollator(pad_token_id=0)
    micro = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    losses = []
    for start in range(0, len(micro), accumulation):
        step = micro[start : start + accumulation]
        total = torch.stack([label_tokens(b) for b in step]).sum()
        parts = [loss_of(model, b, criterion) * label_tokens(b) / total for b in step]
        loss = torch.stack(parts).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, {name: p.detach() for name, p in trained.items()}


def loss_of(model: Any, batch: dict[str, Tensor], criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The language model's loss, by a criterion of one's own, and the constraint."""
    outputs = model(**batch)
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    constraint = outputs.loss - cross_entropy(logits, labels)
    return criterion(logits, labels) + constraint


def weights(model: Any) -> dict[str, Any]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def settings(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
    """Arguments with which the Trainer, or one derived from it, does what `plain_loop` does."""
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **overrides,
    }


def assert_same_run(trainer: Trainer, expected: tuple[list[float], dict[str, Tensor]]) -> None:
    """Trains, and compares the losses that are logged and the weights at the end."""
    trainer.train()
    losses, expected_weights = expected
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=6e-5)  # the Trainer of transformers 4 logs four decimals
    got = weights(trainer.model)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-4, atol=1e-5)


class InOrder:
    """The rows in their order, as the plain loop takes them."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


class OrderedTrainer(InOrder, Trainer):
    """transformers' Trainer, the rows in their order."""
