"""The prompt template `chat`: a tokenizer's own chat template, and where in what it writes the answers stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice, pairwise, product
from typing import TYPE_CHECKING, Any, Final, cast

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.formats import Message
from loramoe.data.templates import Encoded, PromptTemplate, TemplateError, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
Text = tuple[str, list[Span]]
"""A rendered conversation, and which of its characters are learnt."""

_USER: Final = Message(role="user", content="Kq7 zv")
_ANSWER: Final = Message(role="assistant", content="Wx3 jb")
_SYSTEM: Final = Message(role="system", content="Hd5 tn")


class ChatTemplate(PromptTemplate):
    """The tokenizer's chat template.

    What the template writes before an answer belongs to the prompt: the generation prompt, and an empty think block.
    The end of an answer is learnt up to the first added token, such as `<|im_end|>`. Both are found once, by rendering
    a conversation.

    Args:
        tokenizer: Any tokenizer of transformers that has a chat template.

    Raises:
        TemplateError: If the tokenizer has no chat template, or one that does not compile.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise TemplateError(
                "the prompt template 'chat' needs tokenizer.chat_template, which is not set (base models have none). "
                "Set it, or use the prompt template 'release'."
            )
        self.tokenizer = tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        words = sorted(added.union(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, words)) or "(?!)")
        self.end_ids = ()
        self._lead = self._end = ""
        self._leads = [""]
        self._around: tuple[str, str, str] | None = None
        for as_parts, first in product((False, True), ([], [_SYSTEM])):
            self._as_parts = as_parts
            if self._examine([*first, _USER]):
                return
        self._as_parts = False  # whatever is wrong, each sample is refused with its reason

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's.

        Raises:
            TemplateError: If the template cannot render it.
        """
        text = _checked(self._render([messages], prompt=True)[0])
        try:
            spans = self._spans(messages, text, self._render(_prompts(messages), prompt=True))
        except TemplateError:  # a template may leave the thoughts of earlier answers out
            spans = []
        return self._tokenise([(text + self._lead, spans)])[0].input_ids

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        wholes = self._render(conversations, prompt=False)
        pairs = list(zip(conversations, map(self._only_answer, conversations, wholes), strict=True))
        prompts = iter(self._render([one for chat, span in pairs if not span for one in _prompts(chat)], prompt=True))
        texts: list[Text | TemplateError] = []
        for (chat, span), whole in zip(pairs, wholes, strict=True):
            before = [] if span else list(islice(prompts, len(_prompts(chat))))
            try:
                text = _checked(whole)
                spans = [span] if span else self._spans(chat, text, before)
                left_out = next((turn for turn in chat if turn["content"].strip() not in text), None)
                texts.append(_left_out(left_out) if left_out else (text, spans))
            except TemplateError as error:
                texts.append(error)
        encoded = iter(self._tokenise([text for text in texts if not isinstance(text, TemplateError)]))
        return [
            text if isinstance(text, TemplateError) else next(encoded)._replace(special=self._has_special(chat))
            for chat, text in zip(conversations, texts, strict=True)
        ]

    def _has_special(self, chat: Sequence[Message]) -> bool:
        return any(self._special.search(turn["content"]) for turn in chat)

    def _tokenise(self, texts: Sequence[Text]) -> list[Encoded]:
        """Tokenises each text whole.

        Where a token would join the end of a prompt to its answer, which no model could be given to answer, the pieces
        are tokenised one by one.
        """
        batch: Any = self._ids([text for text, _ in texts]) if texts else []
        found = []
        for row, (text, spans) in enumerate(texts):
            whole = _labelled(batch[row], batch["input_ids"][row], text, spans) if self.tokenizer.is_fast else None
            if whole is None:
                edges = [0, *(edge for span in spans for edge in span), len(text)]
                pieces = self._ids([text[start:stop] for start, stop in pairwise(edges)])["input_ids"]
                whole = joined((ids, number % 2 == 1) for number, ids in enumerate(pieces))
            found.append(whole)
        return found

    def _ids(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)

    def _examine(self, asked: Sequence[Message]) -> bool:
        """Finds what the template writes before and after an answer; False if it does not write all words."""
        chat, words = [*asked, _ANSWER], _ANSWER["content"]
        prompt, with_system = self._render([asked, [_SYSTEM, *asked]], prompt=True)
        chats = [asked, chat, [*chat, _USER, _ANSWER], [_SYSTEM, *chat]]
        bare, once, twice, whole = self._render(chats, prompt=False)
        if not isinstance(once, str) or _USER["content"] not in once or words not in once:
            return False
        after = once.rpartition(words)[2]
        opening, rest, rest_of_two = _behind(bare, prompt), _behind(prompt, once), _behind(prompt, twice)
        lead, other = (text.partition(words)[0] if text and words in text else "" for text in (rest, rest_of_two))
        self._lead = lead if lead.strip() else ""
        self._leads = sorted({lead, other, ""}, key=len, reverse=True)
        self._end = after
        added = self.tokenizer.added_tokens_decoder
        ends = [token for token in self._ids([after])["input_ids"][0] if token in added]
        ends = [token for token in ends if added[token].content.strip() and added[token].content.strip() in after]
        if ends:
            end = added[ends[0]].content.strip()
            self._end, self.end_ids = after[: after.index(end) + len(end)], (ends[0],)
        is_prefix = isinstance(whole, TemplateError) or _behind(with_system, whole) is not None
        if opening is not None and rest is not None and is_prefix:
            self._around = opening, lead, after
        return True

    def _render(self, chats: Sequence[Sequence[Message]], prompt: bool) -> list[str | TemplateError]:
        from jinja2 import TemplateSyntaxError

        if not chats:
            return []
        turns: Any = chats
        if self._as_parts:
            turns = [[{**one, "content": [{"type": "text", "text": one["content"]}]} for one in chat] for chat in chats]
        try:
            texts = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
            return cast("list[str | TemplateError]", texts)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not compile: {' '.join(str(error).split())}.") from error
        except Exception as error:  # a template is a program, and may fail in any way
            if len(chats) > 1:
                return [text for chat in chats for text in self._render([chat], prompt)]
            reason = " ".join(str(error).split()) or type(error).__name__
            return [TemplateError(f"the chat template refuses the conversation: {reason}")]

    def _only_answer(self, chat: Sequence[Message], text: str | TemplateError) -> Span | None:
        """The answer to a single question, found without rendering its prompt, which would take half of the time."""
        roles = [message["role"] for message in chat]
        if self._around is None or isinstance(text, TemplateError) or roles.index("assistant") != len(roles) - 1:
            return None
        opening, lead, after = self._around
        answer = chat[-1]["content"]
        for words in (answer, answer.strip()):
            if text.endswith(f"{opening}{lead}{words}{after}"):
                start = len(text) - len(words) - len(after)
                return start if lead.strip() else start - len(lead), start + len(words) + len(self._end)
        return None

    def _spans(self, chat: Sequence[Message], text: str, prompts: Sequence[str | TemplateError]) -> list[Span]:
        answers = [message for message in chat if message["role"] == "assistant"]
        return [self._span(text, _checked(prompt), one) for prompt, one in zip(prompts, answers, strict=True)]

    def _span(self, text: str, prompt: str, message: Message) -> Span:
        answer = message["content"]
        if not text.startswith(prompt):
            raise TemplateError(
                "the chat template writes a prompt differently once its answer follows, so that they cannot be divided "
                f"(answer: {answer[:60]!r}). Use another chat template, or 'release'."
            )
        for lead, words in product(self._leads, (answer, answer.rstrip(), answer.lstrip(), answer.strip())):
            start = len(prompt) + len(lead)
            if text.startswith(lead + words, len(prompt)):
                stop = start + len(words)
                stop += len(self._end) if text.startswith(self._end, stop) else 0
                # A blank before an answer is part of its first token.
                return (start if lead.strip() else len(prompt)), stop
        raise _left_out(message)


def _prompts(chat: Sequence[Message]) -> list[Sequence[Message]]:
    """What stands before each answer."""
    return [chat[:index] for index, message in enumerate(chat) if message["role"] == "assistant"]


def _behind(beginning: str | TemplateError, text: str | TemplateError) -> str | None:
    """What follows the beginning of a text; None if it begins otherwise."""
    if isinstance(beginning, TemplateError) or isinstance(text, TemplateError) or not text.startswith(beginning):
        return None
    return text[len(beginning) :]


def _checked(text: str | TemplateError) -> str:
    if isinstance(text, TemplateError):
        raise text
    return text


def _left_out(message: Message) -> TemplateError:
    return TemplateError(
        f"the chat template leaves out or changes words of the {message['role']}: {message['content'][:60]!r}. "
        "Use a chat template that writes texts whole, or 'release'."
    )


def _labelled(encoding: Any, ids: list[int], text: str, spans: Sequence[Span]) -> Encoded | None:
    """Ids and labels of a text that was tokenised whole; None where a token crosses the beginning of an answer."""

    def token_at(char: int) -> int:  # or that of the next character that has one
        tokens = (encoding.char_to_token(index) for index in range(char, len(text)))
        return next((token for token in tokens if token is not None), len(ids))

    def begins_before(token: int, char: int) -> bool:
        return token < len(ids) and bool(encoding.token_to_chars(token)[0] < char)

    labels = [IGNORE_INDEX] * len(ids)
    for start, stop in spans:
        first, end = token_at(start), token_at(stop)
        if begins_before(first, start):
            return None
        end += begins_before(end, stop)
        labels[first:end] = ids[first:end]
    return Encoded(ids, labels)
