"""A tokenizer made on the spot, one token per byte, and samples written to files of any kind."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from loramoe.data import DataConfig, DataSource, load_splits, tokenise_dataset

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_bars():
    datasets.disable_progress_bars()


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


def to_bytes(kind: str, rows: list[Any]) -> bytes:
    """Rows in the kind of a file's name."""
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Iterable[Any]], Path]:
    """Writes rows to a file below the temporary folder, in the kind and compression that its name asks for."""

    def write_rows(name: str, rows: Iterable[Any]) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = file.name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2].lower()
        with pa.output_stream(str(file)) as out:  # which compresses as the name says
            out.write(to_bytes(kind, list(rows)))
        return file

    return write_rows


@pytest.fixture
def run(tokenizer, tmp_path):
    """Tokenises into a cache below the temporary folder; keywords change the settings."""

    def tokenised(path, **changes):
        options = {"tokenizer": tokenizer, "max_seq_length": 64, "cache_dir": tmp_path / "cache", **changes}
        return tokenise_dataset(path, **options)

    return tokenised


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads splits of data sets into a cache below the temporary folder; keywords change the settings."""

    def splits(*sources, validation=(), tokenizer=tokenizer, **changes):
        config = DataConfig(*(tuple(map(as_source, group)) for group in (sources, validation)))
        options = {"max_seq_length": 64, "cache_dir": tmp_path / "cache", **changes}
        return load_splits(tokenizer, config, **options)

    return splits


def as_source(source: Any) -> DataSource:
    return source if isinstance(source, DataSource) else DataSource(str(source))
