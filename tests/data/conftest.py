"""A tokenizer made on the spot, one token per byte, and rows written to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loramoe.data import tokenise_dataset

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds a byte-level tokenizer that adds `<s>` in front (or as `frame` says), with `<s>` 0 and `</s>` 1."""

    def make(frame: str = "<s> $A", eos_token: str | None = "</s>", **options: Any) -> PreTrainedTokenizerFast:
        pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos_token, **options)

    return make


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def chat_tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer(chat_template=CHAT)


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Makes a good row; keywords change it, and `...` removes a field."""

    def make(**changes: Any) -> dict[str, Any]:
        fields = {"instruction": "Who?", "input": "", "output": "Me.", "task_type": 1, **changes}
        return {name: value for name, value in fields.items() if value is not ...}

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Iterable[Any]], Path]:
    """Writes rows to a file below the temporary folder, in the format that its name asks for."""

    def write_rows(name: str, rows: Iterable[Any]) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = list(rows)
        lines = json.dumps(rows) if file.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        file.write_text(lines, encoding="utf-8")
        return file

    return write_rows


@pytest.fixture
def run(tokenizer, tmp_path):
    """Tokenises into a cache below the temporary folder; keywords change the settings."""

    def tokenised(path, **changes):
        options = {"tokenizer": tokenizer, "max_seq_length": 64, "cache_dir": tmp_path / "cache", **changes}
        return tokenise_dataset(path, **options)

    return tokenised
