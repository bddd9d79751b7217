"""The prompt template `chat`: a tokenizer's own chat template, and where in its text the answers stand."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import date
from itertools import pairwise
from typing import Any, Final, NamedTuple

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.formats import Message
from loramoe.data.templates import TEMPLATES, Encoded, ReleaseTemplate, TemplateError, join_pieces

Span = tuple[int, int]

_INSTEAD: Final = "Use a chat template that writes texts whole, or 'release'."


class _Frame(NamedTuple):
    """What a template writes around the words of conversations with equal roles."""

    texts: list[str]  # before each message, and after the last one
    leads: dict[int, str]  # between the generation prompt and the words of an answer: nothing, blanks, or a think block
    end: str  # after an answer, up to the first added token, such as `<|im_end|>`


class ChatTemplate:
    """The tokenizer's chat template.

    A conversation of made-up words, rendered once for each sequence of roles, shows what the template writes around the
    words. A sample is refused if its text is not the same with its own words.

    `end_ids` are the tokens that end an answer in training; generation must stop there.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                "the prompt template 'chat' needs tokenizer.chat_template, which is not set (base models have none). "
                "Set it, or use the prompt template 'release'."
            )
        self.tokenizer = tokenizer
        self._frames: dict[tuple[date, tuple[str, ...]], _Frame] = {}  # some templates write the date
        added = tokenizer.added_tokens_decoder
        ids = {token.content.strip(): index for index, token in added.items() if token.content.strip()}
        self._added = _any_of(ids)
        self._special = _any_of({*tokenizer.all_special_tokens, *(t.content for t in added.values() if t.special)})
        self.end_ids: tuple[int, ...] = ()
        for roles in (("user", "assistant"), ("system", "user", "assistant")):  # some templates need a system prompt
            with suppress(TemplateError):
                end = self._added.search(self._frame(roles).end)
                self.end_ids = (ids[end[0]],) if end else ()

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's: exactly the ids before its answer in training."""
        prompt, spans = self._render(messages, is_prompt=True), []
        with suppress(TemplateError):  # a template may leave the thoughts of earlier answers out
            frame = self._frame((*(turn["role"] for turn in messages), "assistant"))
            lead = frame.leads[len(messages)]
            text, prompt = prompt + lead, prompt + lead if lead.strip() else prompt
            spans = _find_answers(messages, text, frame)
        return self._tokenise([(prompt, spans)])[0].input_ids

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""
        rendered: Sequence[str | None] = [None] * len(conversations)
        with suppress(Exception):  # all at once is faster; those that cannot be rendered are found one by one
            rendered = self.tokenizer.apply_chat_template(conversations, tokenize=False)
        texts = [self._text(chat, text) for chat, text in zip(conversations, rendered, strict=True)]
        encoded = iter(self._tokenise([text for text in texts if not isinstance(text, TemplateError)]))
        special = (any(self._special.search(turn["content"]) for turn in chat) for chat in conversations)
        return [
            text if isinstance(text, TemplateError) else next(encoded)._replace(special=marked)
            for text, marked in zip(texts, special, strict=True)
        ]

    def _text(self, chat: Sequence[Message], text: str | None) -> tuple[str, list[Span]] | TemplateError:
        try:
            text = self._render(chat) if text is None else text
            return text, _find_answers(chat, text, self._frame(tuple(turn["role"] for turn in chat)))
        except TemplateError as error:
            return error

    def _frame(self, roles: tuple[str, ...]) -> _Frame:
        key = date.today(), roles
        if key not in self._frames:
            chat = [Message(role=role, content=f"Kq{number}zv") for number, role in enumerate(roles)]
            text = self._render(chat)
            texts, leads = re.split(r"Kq\d+zv", text), {}
            if len(texts) != len(chat) + 1:
                raise TemplateError(f"the chat template leaves out or repeats the words of a turn. {_INSTEAD}")
            for index in (index for index, role in enumerate(roles) if role == "assistant"):
                prompt, before = self._render(chat[:index], is_prompt=True), text.partition(chat[index]["content"])[0]
                if not before.startswith(prompt):
                    changed = "writes a prompt differently once its answer follows, so that they cannot be divided"
                    raise TemplateError(f"the chat template {changed}. {_INSTEAD}")
                leads[index] = before[len(prompt) :]
            end = self._added.search(texts[-1])
            self._frames[key] = _Frame(texts, leads, texts[-1][: end.end()] if end else texts[-1])
        return self._frames[key]

    def _render(self, chat: Sequence[Message], is_prompt: bool = False) -> str:
        from jinja2 import TemplateSyntaxError

        try:
            return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_prompt))
        except TemplateSyntaxError as error:
            raise ValueError(f"the chat template does not compile: {' '.join(str(error).split())}.") from error
        except Exception as error:  # a template is a program, and may fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TemplateError(f"the chat template refuses the conversation: {reason}") from error

    def _tokenise(self, texts: Sequence[tuple[str, list[Span]]]) -> list[Encoded]:
        """Tokenises each text whole; piece by piece where a token joins the end of a prompt to its answer."""
        batch = self._ids([text for text, _ in texts], self.tokenizer.is_fast) if texts else {}
        encoded = []
        for row, (text, spans) in enumerate(texts):
            offsets = batch["offset_mapping"][row] if self.tokenizer.is_fast else None
            whole = _label(batch["input_ids"][row], offsets, spans) if offsets else None
            if whole is None:
                edges = [0, *(edge for span in spans for edge in span), len(text)]
                pieces = self._ids([text[start:stop] for start, stop in pairwise(edges)])["input_ids"]
                whole = join_pieces((piece, number % 2 == 1) for number, piece in enumerate(pieces))
            encoded.append(whole)
        return encoded

    def _ids(self, texts: list[str], offsets: bool = False) -> Any:
        options = {"return_attention_mask": False, "return_offsets_mapping": offsets, "verbose": False}
        return self.tokenizer(texts, add_special_tokens=False, **options)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def _find_answers(chat: Sequence[Message], text: str, frame: _Frame) -> list[Span]:
    """Finds the answers of a conversation, each with its end; a blank before an answer is part of its first token."""
    spans, start = [], 0
    for index, turn in enumerate(chat):
        start += len(frame.texts[index])
        content, after = turn["content"], frame.texts[index + 1]
        variants = (content, content.rstrip(), content.lstrip(), content.strip())
        words = next((words for words in variants if text.startswith(words + after, start)), None)
        if words is None:
            changed = f"words of the {turn['role']}: {content[:60]!r}"
            raise TemplateError(f"the chat template leaves out or changes {changed}. {_INSTEAD}")
        stop = start + len(words)
        if turn["role"] == "assistant":
            lead = frame.leads[index]
            ended = stop + len(frame.end) if after.startswith(frame.end) else stop
            spans.append((start if lead.strip() else start - len(lead), ended))
        start = stop
    return spans


def _label(ids: list[int], offsets: Sequence[Span], spans: Sequence[Span]) -> Encoded | None:
    """Labels the tokens of spans; None if a token crosses the beginning of one."""
    labels = [IGNORE_INDEX] * len(ids)
    for start, stop in spans:
        first, end = (bisect_left(offsets, (place, 0)) for place in (start, stop))
        if first and offsets[first - 1][1] != start:
            return None
        labels[first:end] = ids[first:end]
    return Encoded(ids, labels)


PromptTemplate = ReleaseTemplate | ChatTemplate


def get_template(name: str, tokenizer: Any) -> PromptTemplate:
    """Makes the prompt template `"release"` or `"chat"` for a tokenizer.

    Raises:
        ValueError: If there is no template of that name, or the tokenizer lacks what it needs.
    """
    if name not in TEMPLATES:
        raise ValueError(f"prompt template must be one of {', '.join(map(repr, TEMPLATES))}; got {name!r}. Choose one.")
    return ReleaseTemplate(tokenizer) if name == "release" else ChatTemplate(tokenizer)
