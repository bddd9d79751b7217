"""Prompt templates: from a conversation to token ids, and to what of them is learnt.

`release` is the layout of the original LoRAMoE release; `chat` is the tokenizer's own chat template. Both learn what
the assistant says and the token that ends it, and nothing else.

The words of a sample are text: a `</s>` in an instruction must not end the prompt, so `release` tokenises words with
`split_special_tokens=True`. A chat template writes its special tokens and the words as one string; `chat` marks samples
whose words contain a special token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.rendering import ChatRenderer, Message, Span, TemplateError, Text, conversation, user_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TEMPLATES", "ChatTemplate", "Encoded", "Message", "PromptTemplate", "ReleaseTemplate"]
__all__ += ["TemplateError", "conversation", "get_template", "user_text"]


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
        """Cuts the end off.

        Args:
            max_seq_length: Most tokens to keep.

        Returns:
            The first tokens; None if none of them is learnt.
        """
        short = Encoded(self.input_ids[:max_seq_length], self.labels[:max_seq_length], self.special)
        return short if any(label != IGNORE_INDEX for label in short.labels) else None


class PromptTemplate(Protocol):
    """What a template can do; made for one tokenizer by `get_template`.

    Attributes:
        end_ids: Tokens that end an answer in training; generation must stop there.
    """

    end_ids: tuple[int, ...]

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's.

        Raises:
            TemplateError: If the template cannot render it.
        """


class ReleaseTemplate:
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
                "the prompt template 'release' ends prompt and answer with tokenizer.eos_token, which is not set. "
                "Set it, for example tokenizer.eos_token = '</s>', or pass eos_token to from_pretrained."
            )
        self.tokenizer = tokenizer
        self.end_ids: tuple[int, ...] = (tokenizer.eos_token_id,)

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""
        checked = [_problem(chat) or _with_system(chat) for chat in conversations]
        turns = iter(self._turn_ids([one for one in checked if not isinstance(one, TemplateError)]))
        return [one if isinstance(one, TemplateError) else _learn_answers(one, next(turns)) for one in checked]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""
        return self.chat_ids([Message(role="user", content=user_text(instruction, input))])

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's."""
        return [token for ids in self._turn_ids([_with_system(messages)])[0] for token in ids]

    def _turn_ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[list[int]]]:
        """The ids of each turn of each conversation, its end token included."""
        opening = iter(self._text_ids([turns[0]["content"] for turns in conversations], add_special_tokens=True))
        rest = [turn["content"] for turns in conversations for turn in turns[1:]]
        following = iter(self._text_ids(rest, add_special_tokens=False))
        (end,) = self.end_ids
        # Some tokenizers append the end-of-sequence token themselves; one is enough.
        firsts = [ids if ids[-1:] == [end] else [*ids, end] for ids in opening]
        return [
            [first, *([*ids, end] for ids in islice(following, len(turns) - 1))]
            for first, turns in zip(firsts, conversations, strict=True)
        ]

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


def _learn_answers(turns: Sequence[Message], ids_of_turns: Sequence[list[int]]) -> Encoded:
    input_ids: list[int] = []
    labels: list[int] = []
    for turn, ids in zip(turns, ids_of_turns, strict=True):
        input_ids += ids
        labels += ids if turn["role"] == "assistant" else [IGNORE_INDEX] * len(ids)
    return Encoded(input_ids, labels)


def _problem(chat: Sequence[Message]) -> TemplateError | None:
    roles = [message["role"] for message in chat if message["role"] != "system"]
    if "assistant" not in roles:
        return TemplateError("the conversation has no turn of the assistant to learn. Add an answer, or remove it.")
    if roles[0] != "user":
        return TemplateError("the conversation starts with the assistant. Start it with a turn of the user.")
    return None


class ChatTemplate:
    """The tokenizer's chat template.

    What the template writes before an answer belongs to the prompt: the generation prompt, and an empty think block.
    The end of an answer is learnt up to the first added token, such as `<|im_end|>`.

    Args:
        tokenizer: Any tokenizer of transformers that has a chat template.

    Raises:
        TemplateError: If the tokenizer has no chat template, or one that does not compile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.renderer = ChatRenderer(tokenizer)
        self.end_ids = self.renderer.end_ids
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        words = sorted(added.union(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, words)) or "(?!)")

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""
        problems = [_problem(one) for one in conversations]
        sound = [one for one, problem in zip(conversations, problems, strict=True) if problem is None]
        texts = iter(self.renderer.texts(sound))
        rendered = [problem or next(texts) for problem in problems]
        ids = iter(self._tokenise([text for text in rendered if not isinstance(text, TemplateError)]))
        return [
            text if isinstance(text, TemplateError) else Encoded(*next(ids), self._has_special(one))
            for one, text in zip(conversations, rendered, strict=True)
        ]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""
        return self.chat_ids([Message(role="user", content=user_text(instruction, input))])

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's.

        Raises:
            TemplateError: If the template cannot render it.
        """
        return self._tokenise([self.renderer.prompt(messages)])[0][0]

    def _tokenise(self, texts: Sequence[Text]) -> list[tuple[list[int], list[int]]]:
        """Token ids and labels of rendered conversations.

        A text is tokenised whole. Where a token would join the end of a prompt to its answer, which no model could be
        given to answer, the pieces are tokenised one by one.
        """
        if not texts:
            return []
        batch = self._ids([text for text, _ in texts])
        fast = self.tokenizer.is_fast
        found = [_labelled(batch, row, *text) if fast else None for row, text in enumerate(texts)]
        pieces = [_pieces(*text) for text, one in zip(texts, found, strict=True) if one is None]
        flat = [piece for row in pieces for piece, _ in row]
        ids = iter(self._ids(flat)["input_ids"] if flat else [])
        rows = iter(pieces)
        return [one or _joined([(next(ids), learnt) for _, learnt in next(rows)]) for one in found]

    def _ids(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)

    def _has_special(self, chat: Sequence[Message]) -> bool:
        return any(self._special.search(message["content"]) for message in chat)


def _labelled(batch: Any, row: int, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]] | None:
    """Ids and labels of a text that was tokenised whole; None where a token crosses the beginning of an answer."""
    ids: list[int] = batch["input_ids"][row]
    labels = [IGNORE_INDEX] * len(ids)
    for start, stop in spans:
        first, end = (_token_at(batch, row, char, len(text)) for char in (start, stop))
        if first < len(ids) and batch.token_to_chars(row, first).start < start:
            return None
        if end < len(ids) and batch.token_to_chars(row, end).start < stop:
            end += 1
        labels[first:end] = ids[first:end]
    return ids, labels


def _token_at(batch: Any, row: int, char: int, length: int) -> int:
    """The token of a character, or of the next one that has a token."""
    tokens = (batch.char_to_token(row, index) for index in range(char, length))
    return next((token for token in tokens if token is not None), len(batch["input_ids"][row]))


def _pieces(text: str, spans: Sequence[Span]) -> list[tuple[str, bool]]:
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [(text[a:b], number % 2 == 1) for number, (a, b) in enumerate(pairwise(edges))]


def _joined(pieces: Sequence[tuple[list[int], bool]]) -> tuple[list[int], list[int]]:
    ids = [token for piece, _ in pieces for token in piece]
    return ids, [token if learnt else IGNORE_INDEX for piece, learnt in pieces for token in piece]


TEMPLATES: Final[Mapping[str, Callable[[PreTrainedTokenizerBase], PromptTemplate]]] = MappingProxyType(
    {"release": ReleaseTemplate, "chat": ChatTemplate}
)


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Makes a prompt template for a tokenizer.

    Args:
        name: `"release"` or `"chat"`.
        tokenizer: The model's tokenizer.

    Returns:
        The template.

    Raises:
        ValueError: If there is no template of that name, or the tokenizer lacks what it needs.
    """
    if name not in TEMPLATES:
        raise ValueError(f"prompt template must be one of {', '.join(map(repr, TEMPLATES))}; got {name!r}. Choose one.")
    return TEMPLATES[name](tokenizer)
