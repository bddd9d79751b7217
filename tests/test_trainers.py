"""The constraint under trainers that people use: transformers' Trainer, with label smoothing, and TRL's SFTTrainer.

Each is compared with a plain loop written here: same batches, same optimizer, same losses and weights.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from loramoe.data import SftCollator

VOCAB, LEARNING_RATE = 40, 1e-2
LENGTHS = (9, 4, 6, 8, 5, 7, 3, 10)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, pad_token_id=0, **sizes))
    config = LoraMoeConfig(
        lora_nums=4, blc_weight=0.5, blc_alpha=0.3, lora_dropout=0.0, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": i, "labels": [-100, -100, *i[2:]], "task_types": k % 2} for k, i in enumerate(ids)]


def label_tokens(batch: dict[str, Tensor]) -> Tensor:
    return (batch["labels"][:, 1:] != -100).sum()


def plain_loop(
    model: Any, rows: list[dict[str, Any]], batch_size: int, accumulation: int, smoothing: float = 0.0
) -> tuple[list[float], dict[str, Tensor]]:
    """One epoch of AdamW: each micro-batch's LM loss and constraint count by their share of the step's label tokens."""
    model = copy.deepcopy(model).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, weight_decay=0.0)
    collate = SftCollator(pad_token_id=0)
    micro = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    losses = []
    for start in range(0, len(micro), accumulation):
        step = micro[start : start + accumulation]
        total = torch.stack([label_tokens(b) for b in step]).sum()
        parts = [loss_of(model, b, smoothing) * label_tokens(b) / total for b in step]
        loss = torch.stack(parts).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses, {name: p.detach() for name, p in trained.items()}


def loss_of(model: Any, batch: dict[str, Tensor], smoothing: float) -> Tensor:
    outputs = model(**batch)
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    constraint = outputs.loss - cross_entropy(logits, labels)
    return cross_entropy(logits, labels, label_smoothing=smoothing) + constraint


def settings(tmp_path: Path, **overrides: Any) -> dict[str, Any]:
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
    trainer.train()
    losses, weights = expected
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=6e-5)  # the Trainer of transformers 4 logs four decimals
    got = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, weight in weights.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-4, atol=1e-5)


class InOrder:
    """The rows in their order, as the plain loop takes them."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class OrderedTrainer(InOrder, Trainer):
    pass


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer(accumulation: int, model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, accumulation)
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=accumulation))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_trainer_with_gradient_checkpointing(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, 2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    args = TrainingArguments(**settings(tmp_path, gradient_accumulation_steps=2))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_trainer_with_label_smoothing(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = plain_loop(model, rows, 2, 1, smoothing=0.1)
    args = TrainingArguments(**settings(tmp_path, label_smoothing_factor=0.1))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_trainer_evaluates_the_language_model_alone(model: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    batch = SftCollator(0)(rows)
    with torch.no_grad():
        expected = model.eval()(**{k: v for k, v in batch.items() if k != "task_types"}).loss.item()
    args = TrainingArguments(**settings(tmp_path, per_device_eval_batch_size=8))
    trainer = Trainer(model, args, eval_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_transformers_door_has_the_trainer_keep_the_column(
    model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    expected = plain_loop(model, rows, 2, 1)
    args = TrainingArguments(**settings(tmp_path, remove_unused_columns=True))
    trainer = OrderedTrainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=SftCollator(0))
    assert_same_run(trainer, expected)


def test_the_smoother_leaves_other_models_alone() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [0, 4, 3]])
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    for output in ({"logits": logits}, (logits,)):
        torch.testing.assert_close(LabelSmoother(epsilon=0.1)(output, labels), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_trl_sft_trainer(
    accumulation: int, smoothing: float, model: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    expected = plain_loop(model, rows, 2, accumulation, smoothing)
    args = trl.SFTConfig(
        **settings(tmp_path, gradient_accumulation_steps=accumulation, label_smoothing_factor=smoothing),
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=False,
        gradient_checkpointing=False,
    )

    class OrderedSFTTrainer(InOrder, trl.SFTTrainer):
        pass

    tokenizer = word_tokenizer()
    trainer = OrderedSFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(rows),
        data_collator=SftCollator(0),
        processing_class=tokenizer,
    )
    assert_same_run(trainer, expected)


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
