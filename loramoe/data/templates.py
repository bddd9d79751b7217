"""Prompt templates: from a conversation to token ids, and to what of them is learnt; and the one a training used.

`release` is the layout of the original code; `chat` (`loramoe.data.chat`) is the tokenizer's own chat template.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.formats import Message
from loramoe.data.sources import hash_of

TEMPLATES: Final = ("release", "chat")
PROMPT_FILE: Final = "loramoe_prompt.json"

logger = logging.getLogger(__name__)


class TemplateError(ValueError):
    """Why a template cannot render a sample, in one line, without its place."""


class Encoded(NamedTuple):
    """A conversation as token ids."""

    input_ids: list[int]
    labels: list[int]  # the same ids, -100 except on the assistant's answers and on what ends them
    special: bool = False  # whether words of the conversation became a special token

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first answer."""
        return self.input_ids[: self.labels.index(self.target[0])]

    @property
    def target(self) -> list[int]:
        """The learnt tokens."""
        return [label for label in self.labels if label != IGNORE_INDEX]


def join_pieces(pieces: Iterable[tuple[list[int], bool]]) -> Encoded:
    """Joins the ids of pieces of a conversation, each with whether it is learnt."""
    encoded = Encoded([], [])
    for ids, learnt in pieces:
        encoded.input_ids.extend(ids)
        encoded.labels.extend(ids if learnt else [IGNORE_INDEX] * len(ids))
    return encoded


class ReleaseTemplate:
    r"""`instruction[\ninput]` and the end-of-sequence token, then `output` and the end-of-sequence token.

    Further turns follow alike. A system prompt stands on a line before the user's words. The first turn gets the
    special tokens that the tokenizer adds by itself. A `</s>` in the words of a sample stays text.

    `end_ids` are the tokens that end an answer in training; generation must stop there.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the prompt template 'release' needs tokenizer.eos_token, which is not set. Set it.")
        self.tokenizer = tokenizer
        self.end_ids = (tokenizer.eos_token_id,)
        probe = tokenizer("a", return_special_tokens_mask=True)
        self._start = probe["input_ids"][: probe["special_tokens_mask"].index(0)]

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's: exactly the ids before its answer in training."""
        return self.encode([messages])[0].input_ids

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        """Encodes conversations to learn from."""
        chats = [_join_system(one) for one in conversations]
        ids = iter(self._ids([turn["content"] for chat in chats for turn in chat]))
        turns = [[([*next(ids), *self.end_ids], turn["role"] == "assistant") for turn in chat] for chat in chats]
        return [join_pieces([(self._start, False), *pieces]) for pieces in turns]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        if self.tokenizer.is_fast and texts:
            return list(self.tokenizer(texts, return_attention_mask=False, **options)["input_ids"])
        # Given a list, the tokenizers of transformers 4 that are written in Python forget split_special_tokens.
        return [self.tokenizer(text, **options)["input_ids"] for text in texts]


def _join_system(chat: Sequence[Message]) -> Sequence[Message]:
    if chat[0]["role"] != "system":
        return chat
    system, first, *others = chat
    return [Message(role=first["role"], content=f"{system['content']}\n{first['content']}"), *others]


@dataclass(frozen=True)
class PromptFormat:
    """How the training laid out its samples: template, most tokens of a sample, and names of the task types."""

    template: str = "release"
    max_seq_length: int = 1024
    type_names: dict[int, str] = field(default_factory=dict)


def save_prompt_format(folder: str | os.PathLike[str], prompt_format: PromptFormat) -> None:
    """Writes a prompt format into the folder of an adapter."""
    text = json.dumps(asdict(prompt_format), indent=2, ensure_ascii=False)
    (Path(folder) / PROMPT_FILE).write_text(text + "\n", encoding="utf-8")


def read_prompt_format(folder: str | os.PathLike[str]) -> PromptFormat | None:
    """Reads the prompt format of an adapter; None if it was saved without one; a damaged file is a ValueError."""
    file = Path(folder) / PROMPT_FILE
    if not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in saved.get("type_names", {}).items()}
        return PromptFormat(TEMPLATES[TEMPLATES.index(saved["template"])], int(saved["max_seq_length"]), names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}). Correct it, or remove it and pass --template.") from error


def choose_prompt_format(template: str | None, adapters: Sequence[str | os.PathLike[str]]) -> PromptFormat:
    """Chooses the format of the first adapter that has one, or the default; with the requested template, if not None.

    It warns if the requested template differs from those of the adapters.

    Raises:
        ValueError: If the adapters have different templates and none is requested.
    """
    known = {os.fspath(folder): found for folder in adapters if (found := read_prompt_format(folder))}
    trained = {folder: found.template for folder, found in known.items()}
    if template is None and len(set(trained.values())) > 1:
        raise ValueError(f"the adapters were trained with different prompt templates: {trained}. Pass --template.")
    if template and {template, *trained.values()} != {template}:
        logger.warning("--template %s differs from the template of the training: %s", template, trained)
    first = next(iter(known.values()), PromptFormat())
    return replace(first, template=template or first.template)


def tokenizer_hash(tokenizer: Any) -> str:
    """Hashes a tokenizer as it would be saved, without the padding and truncation that its last call left in it."""
    contents = [type(tokenizer).__name__]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(file for file in Path(folder).rglob("*") if file.is_file()):
            content = file.read_text(encoding="utf-8", errors="surrogateescape")
            if file.name == "tokenizer.json":
                content = json.dumps({**json.loads(content), "truncation": None, "padding": None})
            contents += [file.name, content]
    return hash_of(contents)
