"""Conversations as a tokenizer's chat template writes them, and where in the text the answers stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class TemplateError(ValueError):
    """Why a template cannot render a sample, in one line; names no file, since the template knows none."""


def user_text(instruction: str, input: str) -> str:
    """Joins an instruction and its input, which may be empty, by a line break."""
    return f"{instruction}\n{input}" if input else instruction


def conversation(instruction: str, input: str, output: str) -> list[Message]:
    """Makes a conversation of one question and its answer."""
    return [Message(role="user", content=user_text(instruction, input)), Message(role="assistant", content=output)]


Span = tuple[int, int]
Text = tuple[str, list[Span]]
"""A rendered conversation, and which of its characters are learnt."""

_USER: Final = Message(role="user", content="Kq7 zv")
_ANSWER: Final = Message(role="assistant", content="Wx3 jb")
_SYSTEM: Final = Message(role="system", content="Hd5 tn")


class ChatRenderer:
    """The chat template of a tokenizer. What it writes around an answer is found once, by rendering a conversation.

    Args:
        tokenizer: Any tokenizer of transformers that has a chat template.

    Attributes:
        lead: What the template writes between the generation prompt and an answer, such as an empty think block.
        end: What ends an answer: the text behind it up to the first added token, or all of it where there is none.
        end_ids: That token.

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
        self.lead = self.end = ""
        self.end_ids: tuple[int, ...] = ()
        self._leads = [""]
        self._as_parts = False
        self._around: tuple[str, str, str] | None = None
        self._examine()

    def prompt(self, messages: Sequence[Message]) -> Text:
        """Renders a conversation whose next turn is the assistant's.

        Args:
            messages: The conversation.

        Returns:
            The text up to the answer, and where in it earlier answers stand.

        Raises:
            TemplateError: If the template cannot render it.
        """
        text = _checked(self._render([messages], prompt=True)[0])
        try:
            return text + self.lead, self._spans(messages, text, self._render(_prompts(messages), prompt=True))
        except TemplateError:  # a template may leave the thoughts of earlier answers out
            return text + self.lead, []

    def texts(self, chats: Sequence[Sequence[Message]]) -> list[Text | TemplateError]:
        """Renders conversations to learn from: for each its text and answers, or why it cannot be learnt from."""
        wholes = self._render(chats, prompt=False)
        known = [self._prompt_within(chat, whole) for chat, whole in zip(chats, wholes, strict=True)]
        unknown = [prompt for chat, one in zip(chats, known, strict=True) if one is None for prompt in _prompts(chat)]
        prompts = iter(self._render(unknown, prompt=True))
        texts: list[Text | TemplateError] = []
        for chat, whole, one in zip(chats, wholes, known, strict=True):
            before = islice(prompts, len(_prompts(chat))) if one is None else [one]
            try:
                texts.append((_checked(whole), self._spans(chat, _checked(whole), list(before))))
            except TemplateError as error:
                texts.append(error)
        return texts

    def _examine(self) -> None:
        """Finds how the template takes content, and what it writes before and after an answer."""
        for as_parts, before in product((False, True), ([], [_SYSTEM])):
            self._as_parts = as_parts
            chat = [*before, _USER, _ANSWER]
            (prompt,) = self._render([chat[:-1]], prompt=True)
            once, twice = self._render([chat, [*chat, _USER, _ANSWER]], prompt=False)
            if isinstance(once, str) and _USER["content"] in once and _ANSWER["content"] in once:
                self.lead, *others = [_lead(prompt, text) for text in (once, twice)]
                self._leads = sorted({self.lead, *others, ""}, key=len, reverse=True)
                after = once.rpartition(_ANSWER["content"])[2]
                self._around = self._find_around(chat, after)
                self.lead = self.lead if self.lead.strip() else ""
                self._find_end(after)
                return
        self._as_parts = False  # whatever is wrong, each sample is refused with its reason

    def _find_around(self, chat: Sequence[Message], after: str) -> tuple[str, str, str] | None:
        """Generation prompt, lead and what follows an answer, if each prompt is the beginning of its conversation."""
        chats = [chat, *([] if _SYSTEM in chat else [[_SYSTEM, *chat]])]
        prompts = self._render([one[:-1] for one in chats], prompt=True)
        for prompt, whole in zip(prompts, self._render(chats, prompt=False), strict=True):
            if isinstance(prompt, str) and isinstance(whole, str) and not whole.startswith(prompt):
                return None
        (bare,), whole_prompt = self._render([chat[:-1]], prompt=False), prompts[0]
        if isinstance(bare, str) and isinstance(whole_prompt, str) and whole_prompt.startswith(bare):
            return whole_prompt[len(bare) :], self.lead, after
        return None

    def _prompt_within(self, chat: Sequence[Message], text: str | TemplateError) -> str | None:
        """The prompt of a conversation of one answer, found in its text: to render it would take half of the time."""
        single = len(_prompts(chat)) == 1 and chat[-1]["role"] == "assistant"
        if self._around is None or not single or isinstance(text, TemplateError):
            return None
        opening, lead, after = self._around
        for words in (chat[-1]["content"], chat[-1]["content"].strip()):
            tail = f"{opening}{lead}{words}{after}"
            if text.endswith(tail):
                return text[: len(text) - len(tail) + len(opening)]
        return None

    def _find_end(self, after: str) -> None:
        self.end = after
        added = self.tokenizer.added_tokens_decoder
        for token in self.tokenizer(after, add_special_tokens=False)["input_ids"]:
            content = added[token].content.strip() if token in added else ""
            if content and content in after:
                self.end = after[: after.index(content) + len(content)]
                self.end_ids = (token,)
                return

    def _render(self, chats: Sequence[Sequence[Message]], prompt: bool) -> list[str | TemplateError]:
        from jinja2 import TemplateSyntaxError

        if not chats:
            return []
        turns = [[self._turn(message) for message in chat] for chat in chats]
        try:
            texts = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
            return cast("list[str | TemplateError]", texts)
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template does not compile: {_one_line(error)}. Correct it.") from error
        except Exception as error:  # a template is a program, and may fail in any way
            if len(chats) > 1:
                return [text for chat in chats for text in self._render([chat], prompt)]
            return [TemplateError(f"the chat template refuses the conversation: {_one_line(error)}")]

    def _turn(self, message: Message) -> dict[str, Any]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if self._as_parts else content
        return {"role": message["role"], "content": parts}

    def _spans(self, chat: Sequence[Message], text: str, prompts: Iterable[str | TemplateError]) -> list[Span]:
        """Finds the answers of a conversation, and checks that no words are left out.

        Raises:
            TemplateError: If words are left out, or prompt and answer cannot be divided.
        """
        answers = [message["content"] for message in chat if message["role"] == "assistant"]
        spans = [self._span(text, _checked(p), answer) for p, answer in zip(prompts, answers, strict=True)]
        for message in chat:
            if message["content"].strip() not in text:
                raise _left_out(message["role"], message["content"])
        return spans

    def _span(self, text: str, prompt: str, answer: str) -> Span:
        if not text.startswith(prompt):
            raise TemplateError(
                "the chat template writes what stands before an answer differently once the answer follows, so that "
                f"they cannot be divided (answer: {answer[:60]!r}). Use another chat template, or 'release'."
            )
        for lead, words in product(self._leads, (answer, answer.rstrip(), answer.lstrip(), answer.strip())):
            start = len(prompt) + len(lead)
            if text.startswith(lead, len(prompt)) and text.startswith(words, start):
                stop = start + len(words)
                stop += len(self.end) if text.startswith(self.end, stop) else 0
                # A blank before an answer is part of its first token.
                return (start if lead.strip() else len(prompt)), stop
        raise _left_out("assistant", answer)


def _prompts(chat: Sequence[Message]) -> list[Sequence[Message]]:
    """What stands before each answer."""
    return [chat[:index] for index, message in enumerate(chat) if message["role"] == "assistant"]


def _lead(prompt: str | TemplateError, text: str | TemplateError) -> str:
    """What a template writes between a prompt and the first answer."""
    if isinstance(prompt, TemplateError) or isinstance(text, TemplateError) or not text.startswith(prompt):
        return ""
    before, found, _ = text[len(prompt) :].partition(_ANSWER["content"])
    return before if found else ""


def _checked(text: str | TemplateError) -> str:
    if isinstance(text, TemplateError):
        raise text
    return text


def _left_out(role: str, content: str) -> TemplateError:
    return TemplateError(
        f"the chat template leaves out or changes words of the {role}: {content[:60]!r}. "
        "Use a chat template that writes texts whole, or 'release'."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
