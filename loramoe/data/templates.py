"""Prompt templates: from a conversation to token ids, and to what of them is learnt; and which one a training used.

`release` is the layout of the original release, `chat` the tokenizer's own chat template. Both learn what the assistant
says and the token that ends it. The words of a sample are text: `release` takes a `</s>` in them for characters; a chat
template writes special tokens and words as one string, so `chat` marks samples whose words contain a special token.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.formats import Message, user_text
from loramoe.data.sources import hash_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES: Final = ("release", "chat")
PROMPT_FILE: Final = "loramoe_prompt.json"

logger = logging.getLogger(__name__)


class TemplateError(ValueError):
    """Why a template cannot render a sample, in one line; names no file, since the template knows none."""


class Encoded(NamedTuple):
    """A conversation as token ids.

    Attributes:
        input_ids: The whole conversation.
        labels: The same, -100 except on the assistant's answers and on what ends them.
        special: Whether words of the conversation became a special token.
    """

    input_ids: list[int]
    labels: list[int]
    special: bool = False

    @property
    def prompt(self) -> list[int]:
        """What stands before the first learnt token."""
        first = next((index for index, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))
        return self.input_ids[:first]

    @property
    def target(self) -> list[int]:
        """The learnt tokens."""
        return [label for label in self.labels if label != IGNORE_INDEX]

    def truncated(self, max_seq_length: int) -> Encoded | None:
        """The first max_seq_length tokens; None if none of them is learnt."""
        short = Encoded(self.input_ids[:max_seq_length], self.labels[:max_seq_length], self.special)
        return short if any(label != IGNORE_INDEX for label in short.labels) else None


class PromptTemplate(ABC):
    """What a template can do; made for one tokenizer by `get_template`.

    Attributes:
        end_ids: Tokens that end an answer in training; generation must stop there.
    """

    end_ids: tuple[int, ...]

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""
        problems = [_problem(one) for one in conversations]
        sound = [one for one, problem in zip(conversations, problems, strict=True) if problem is None]
        encoded = iter(self._encode(sound))
        return [problem or next(encoded) for problem in problems]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""
        return self.chat_ids([Message(role="user", content=user_text(instruction, input))])

    @abstractmethod
    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's.

        Raises:
            TemplateError: If the template cannot render it.
        """

    @abstractmethod
    def _encode(self, conversations: Sequence[Sequence[Message]]) -> Sequence[Encoded | TemplateError]:
        """Encodes conversations that begin with the user and have an answer."""


def _problem(chat: Sequence[Message]) -> TemplateError | None:
    roles = [message["role"] for message in chat if message["role"] != "system"]
    if "assistant" not in roles:
        return TemplateError("the conversation has no turn of the assistant to learn. Add an answer, or remove it.")
    if roles[0] != "user":
        return TemplateError("the conversation starts with the assistant. Start it with a turn of the user.")
    return None


class ReleaseTemplate(PromptTemplate):
    r"""`instruction[\ninput]` and the end-of-sequence token, then `output` and the end-of-sequence token.

    Further turns follow alike. A system prompt stands on a line before the user's words. The first turn gets the
    special tokens that the tokenizer adds by itself, such as a beginning-of-sequence token.

    Args:
        tokenizer: Any tokenizer of transformers that has an end-of-sequence token.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the prompt template 'release' needs tokenizer.eos_token, which is not set. Set it, as to '</s>'."
            )
        self.tokenizer = tokenizer
        self.end_ids = (tokenizer.eos_token_id,)

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's."""
        return self._encode([messages])[0].input_ids

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        chats = [_with_system(one) for one in conversations]
        opening = iter(self._text_ids([turns[0]["content"] for turns in chats], add_special_tokens=True))
        rest = [turn["content"] for turns in chats for turn in turns[1:]]
        following = iter(self._text_ids(rest, add_special_tokens=False))
        (end,) = self.end_ids
        encoded = []
        for turns in chats:
            first = next(opening)
            # Some tokenizers append the end-of-sequence token themselves; one is enough.
            ids_of_turns = [first if first[-1:] == [end] else [*first, end]]
            ids_of_turns += [[*ids, end] for ids in islice(following, len(turns) - 1)]
            learnt = (turn["role"] == "assistant" for turn in turns)
            encoded.append(joined(zip(ids_of_turns, learnt, strict=True)))
        return encoded

    def _text_ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        options = {"add_special_tokens": add_special_tokens, "split_special_tokens": True}
        options |= {"return_attention_mask": False, "verbose": False}
        if self.tokenizer.is_fast and texts:
            return cast("list[list[int]]", self.tokenizer(texts, **options)["input_ids"])
        # Given a list, the tokenizers of transformers 4 that are written in Python forget split_special_tokens.
        return [self.tokenizer(text, **options)["input_ids"] for text in texts]


def _with_system(chat: Sequence[Message]) -> list[Message]:
    """The turns of user and assistant, system prompts joined to the turn that follows them."""
    turns: list[Message] = []
    before: list[str] = []
    for message in chat:
        if message["role"] == "system":
            before.append(message["content"])
        else:
            turns.append(Message(role=message["role"], content="\n".join([*before, message["content"]])))
            before = []
    return turns


def joined(pieces: Iterable[tuple[list[int], bool]]) -> Encoded:
    """Joins pieces of a conversation, each with whether it is learnt."""
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, learnt in pieces:
        input_ids += ids
        labels += ids if learnt else [IGNORE_INDEX] * len(ids)
    return Encoded(input_ids, labels)


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Makes the prompt template `"release"` or `"chat"` for a tokenizer.

    Raises:
        ValueError: If there is no template of that name, or the tokenizer lacks what it needs.
    """
    if name not in TEMPLATES:
        raise ValueError(f"prompt template must be one of {', '.join(map(repr, TEMPLATES))}; got {name!r}. Choose one.")
    if name == "release":
        return ReleaseTemplate(tokenizer)
    from loramoe.data.chat import ChatTemplate  # which builds on this module

    return ChatTemplate(tokenizer)


@dataclass(frozen=True)
class PromptFormat:
    """How the training laid out its samples.

    Attributes:
        template: Name of the prompt template.
        max_seq_length: Most tokens of a sample.
        type_names: What the task types stand for.
    """

    template: str = "release"
    max_seq_length: int = 1024
    type_names: dict[int, str] = field(default_factory=dict)


def save_prompt_format(folder: str | os.PathLike[str], prompt_format: PromptFormat) -> None:
    """Writes a prompt format into the folder of an adapter."""
    text = json.dumps(asdict(prompt_format), indent=2, ensure_ascii=False)
    (Path(folder) / PROMPT_FILE).write_text(text + "\n", encoding="utf-8")


def read_prompt_format(folder: str | os.PathLike[str]) -> PromptFormat | None:
    """Reads the prompt format of an adapter; None if it was saved without one.

    Raises:
        ValueError: If the file is damaged.
    """
    file = Path(folder) / PROMPT_FILE
    if not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in saved.get("type_names", {}).items()}
        found = PromptFormat(saved["template"], int(saved["max_seq_length"]), names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error!r}). Correct it, or remove it and pass --template.") from error
    if found.template not in TEMPLATES:
        raise ValueError(f"{file}: the template must be one of {', '.join(TEMPLATES)}; got {found.template!r}.")
    return found


def choose_prompt_format(template: str | None, adapters: Sequence[str | os.PathLike[str]]) -> PromptFormat:
    """Chooses the prompt format for adapters, and warns if a template is requested for that differs from theirs.

    Args:
        template: What the user asks for; None takes the template of the adapters.
        adapters: Folders of adapters.

    Returns:
        The format of the first adapter that has one, or the default, with the template that was wished for.

    Raises:
        ValueError: If the adapters have different templates and none is requested for.
    """
    known = {os.fspath(folder): found for folder in adapters if (found := read_prompt_format(folder)) is not None}
    trained = {folder: found.template for folder, found in known.items()}
    if template is None and len(set(trained.values())) > 1:
        raise ValueError(f"the adapters were trained with different prompt templates: {trained}. Pass --template.")
    differing = {folder: name for folder, name in trained.items() if template not in (None, name)}
    if differing:
        logger.warning("--template %s differs from the template of the training: %s", template, differing)
    first = next(iter(known.values()), PromptFormat())
    return PromptFormat(template or first.template, first.max_seq_length, first.type_names)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
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
