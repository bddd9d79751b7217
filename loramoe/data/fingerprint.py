"""The name under which tokenised data is cached: a hash of everything that decides the tokens.

The contents of the files count, not their names or dates, and the tokenizer's definition, not its path. So an edited
row, an added token or another chat template is always new work, and a moved folder never is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loramoe.data.read import open_data_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION: Final = 1
"""Raised whenever this package would make other columns, tokens or shards from the same data."""

CHUNK_BYTES: Final = 2**20


def data_fingerprint(
    files: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    max_seq_length: int,
    task_types: Collection[int] | None,
) -> str:
    """Hashes what decides the result of tokenising.

    Args:
        files: The data files, in the order in which they are read.
        tokenizer: The tokenizer; its vocabulary, special tokens and chat template count.
        template: Name of the prompt template.
        max_seq_length: Length at which a row is cut, in tokens.
        task_types: The accepted task types, None for any.

    Returns:
        A SHA-256 hash as 64 hexadecimal digits.

    Raises:
        DatasetError: If a file cannot be read.
    """
    parts = {
        "format_version": FORMAT_VERSION,
        "files": [(file.suffix.lower(), file_hash(file)) for file in files],
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template,
        "max_seq_length": max_seq_length,
        "task_types": None if task_types is None else sorted(set(task_types)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """The SHA-256 hash of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_data_file(file) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes a tokenizer as it would be saved: the one form that every kind has and that leaves nothing out.

    Args:
        tokenizer: The tokenizer.

    Returns:
        A SHA-256 hash as 64 hexadecimal digits.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        contents = [(str(file.relative_to(folder)), _definition(file)) for file in files]
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    for name, content in contents:
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _definition(file: Path) -> bytes:
    """Returns the content of a tokenizer's file without the state that its last call left in it."""
    if file.name != "tokenizer.json":
        return file.read_bytes()
    definition = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in definition.items() if key not in ("truncation", "padding")}
    return json.dumps(kept).encode()
