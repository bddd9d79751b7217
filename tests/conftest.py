"""A base model of a few thousand parameters, its tokenizer of whole words, and rows for it: made on the spot, in a second."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loramoe.training.versions import save_tokenizer

WORDS = [f"w{index}" for index in range(60)]


@dataclass(frozen=True)
class TinyTask:
    """Paths of a tiny base model and of data for it."""

    base: Path
    train_dir: Path
    test_file: Path
    recall_file: Path
    cache: Path

    def flags(self, output_dir: Path, **changes: object) -> list[str]:
        """Flags of `train.py` for a run of a few steps."""
        values: dict[str, object] = {
            "model_name_or_path": self.base,
            "dataset_dir": self.train_dir,
            "validation_file": self.test_file,
            "output_dir": output_dir,
            "max_seq_length": 32,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "logging_steps": 2,
            "save_steps": 3,
            "use_cpu": "true",
            "disable_tqdm": "true",
            **changes,
        }
        return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def _rows(count: int, seed: int) -> list[dict[str, object]]:
    draw = random.Random(seed)
    return [
        {
            "instruction": " ".join(draw.choices(WORDS, k=draw.randrange(2, 9))),
            "input": "",
            "output": draw.choice(WORDS[:5]),
            "task_type": index % 2,
        }
        for index in range(count)
    ]


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> TinyTask:
    """A Llama of 2 layers and hidden size 32, 48 rows to train on, 12 to test on, 6 probes."""
    root = tmp_path_factory.mktemp("tiny_task")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    save_tokenizer(_tokenizer(), root / "base")
    probes = [{"prompt": " ".join(WORDS[: 2 + n]), "answer": WORDS[n]} for n in range(6)]
    (root / "train").mkdir()
    for name, value in (("train/train", _rows(48, 1)), ("test", _rows(12, 2)), ("recall", probes)):
        (root / f"{name}.json").write_text(json.dumps(value))
    return TinyTask(root / "base", root / "train", root / "test.json", root / "recall.json", root / "cache")


@pytest.fixture
def own_dataset_cache(tiny_task: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tokenised data of tests out of the user's cache, for this process and for those it starts."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tiny_task.cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tiny_task.cache))


@pytest.fixture
def train(own_dataset_cache: None, tiny_task: TinyTask) -> Callable[..., dict[str, dict[str, float]]]:
    """Runs `train.py` in this process: `train(output_dir, flag=value, …)`."""
    from loramoe.training.arguments import parse
    from loramoe.training.run import run

    def start(output_dir: Path, **changes: object) -> dict[str, dict[str, float]]:
        return run(parse(tiny_task.flags(output_dir, **changes)))

    return start
