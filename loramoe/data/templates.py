"""Prompt templates: from a conversation to token ids, and to what of them is learnt.

`release` is the layout of the original LoRAMoE release; `chat` is the tokenizer's own chat template. Both learn what
the assistant says and the token that ends it, and nothing else.

The words of a sample are text: a `</s>` in an instruction must not end the prompt. `release` therefore tokenises them
with `split_special_tokens=True`. A chat template mixes its own special tokens with the words in one string; `chat`
marks samples whose words contain a special token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice, pairwise, product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypedDict, cast

from loramoe.data.collate import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


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

    Further turns follow alike. A system prompt stands before the user's next words, on a line of its own. The first turn
    gets the special tokens that the tokenizer adds by itself, such as a beginning-of-sequence token.

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
        checked = [_problem(conversation) or _with_system(conversation) for conversation in conversations]
        turns = iter(self._turn_ids([one for one in checked if not isinstance(one, TemplateError)]))
        return [one if isinstance(one, TemplateError) else _learn_answers(one, next(turns)) for one in checked]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""
        return self.chat_ids([Message(role="user", content=user_text(instruction, input))])

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's."""
        return sum(self._turn_ids([_with_system(messages)])[0], [])

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
        options = {
            "add_special_tokens": add_special_tokens,
            "split_special_tokens": True,
            "return_attention_mask": False,
            "verbose": False,
        }
        if self.tokenizer.is_fast and texts:
            return cast("list[list[int]]", self.tokenizer(texts, **options)["input_ids"])
        # Given a list, the tokenizers of transformers 4 that are written in Python forget split_special_tokens.
        return [self.tokenizer(text, **options)["input_ids"] for text in texts]


def _with_system(conversation: Sequence[Message]) -> list[Message]:
    """The turns of user and assistant, system prompts joined to the turn that follows them."""
    turns: list[Message] = []
    before: list[str] = []
    for message in conversation:
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


def _problem(conversation: Sequence[Message]) -> TemplateError | None:
    roles = [message["role"] for message in conversation if message["role"] != "system"]
    if "assistant" not in roles:
        return TemplateError("the conversation has no turn of the assistant to learn. Add an answer, or remove it.")
    if roles[0] != "user":
        return TemplateError("the conversation starts with the assistant. Start it with a turn of the user.")
    return None


Span = tuple[int, int]
Text = tuple[str, list[Span]]
"""A rendered conversation, and which of its characters are learnt."""

_USER: Final = Message(role="user", content="Kq7 zv")
_ANSWER: Final = Message(role="assistant", content="Wx3 jb")
_SYSTEM: Final = Message(role="system", content="Hd5 tn")


class ChatTemplate:
    """The tokenizer's chat template.

    What the template writes before an answer belongs to the prompt: the generation prompt, and an empty block of
    thoughts. The end of an answer is learnt up to the first added token, such as `<|im_end|>`. How the template does
    both is found once, by rendering a conversation.

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
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        words = sorted(special.union(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, words)) or "(?!)")
        self._as_parts = False
        self._lead = ""
        self._leads = [""]
        self._end = ""
        self.end_ids: tuple[int, ...] = ()
        self._examine()

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | TemplateError]:
        """Encodes conversations to learn from: for each its tokens, or why it cannot be learnt from."""
        problems = [_problem(conversation) for conversation in conversations]
        sound = [one for one, problem in zip(conversations, problems, strict=True) if problem is None]
        texts = iter(self._texts(sound))
        divided = [problem or next(texts) for problem in problems]
        ids = iter(self._tokenise([text for text in divided if not isinstance(text, TemplateError)]))
        return [
            text if isinstance(text, TemplateError) else Encoded(*next(ids), self._has_special(conversation))
            for conversation, text in zip(conversations, divided, strict=True)
        ]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes an instruction to answer: exactly the ids that stand before its answer in training."""
        return self.chat_ids([Message(role="user", content=user_text(instruction, input))])

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Encodes a conversation whose next turn is the assistant's.

        Raises:
            TemplateError: If the template cannot render it.
        """
        (text,) = self._render([messages], prompt=True)
        if isinstance(text, TemplateError):
            raise text
        spans: list[Span] = []
        with suppress(TemplateError):  # of an earlier answer, a template may leave the thoughts out
            spans = self._spans(messages, text, self._render(_prompts(messages), prompt=True))
        return self._tokenise([(text + self._lead, spans)])[0][0]

    def _examine(self) -> None:
        """Finds how the template takes content, and what it writes before and after an answer."""
        for as_parts, before in product((False, True), ([], [_SYSTEM])):
            self._as_parts = as_parts
            chat = [*before, _USER, _ANSWER]
            (prompt,) = self._render([chat[:-1]], prompt=True)
            once, twice = self._render([chat, [*chat, _USER, _ANSWER]], prompt=False)
            if isinstance(once, str) and _USER["content"] in once and _ANSWER["content"] in once:
                self._lead, *others = [_lead(prompt, text) for text in (once, twice)]
                self._leads = sorted({self._lead, *others, ""}, key=len, reverse=True)
                self._lead = self._lead if self._lead.strip() else ""
                self._find_end(once.rpartition(_ANSWER["content"])[2])
                return
        self._as_parts = False  # whatever is wrong, each sample is refused with its reason

    def _find_end(self, after: str) -> None:
        self._end = after
        for token in self.tokenizer(after, add_special_tokens=False)["input_ids"]:
            content = self._added.get(token, "").strip()
            if content and content in after:
                self._end = after[: after.index(content) + len(content)]
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

    def _texts(self, chats: Sequence[Sequence[Message]]) -> list[Text | TemplateError]:
        wholes = self._render(chats, prompt=False)
        prompts = iter(self._render([prompt for chat in chats for prompt in _prompts(chat)], prompt=True))
        texts: list[Text | TemplateError] = []
        for chat, whole in zip(chats, wholes, strict=True):
            before = list(islice(prompts, len(_prompts(chat))))
            try:
                texts.append((_checked(whole), self._spans(chat, _checked(whole), before)))
            except TemplateError as error:
                texts.append(error)
        return texts

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
                stop += len(self._end) if text.startswith(self._end, stop) else 0
                # A blank before an answer is part of its first token.
                return (start if lead.strip() else len(prompt)), stop
        raise _left_out("assistant", answer)

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


def user_text(instruction: str, input: str) -> str:
    """Joins an instruction and its input, which may be empty, by a line break."""
    return f"{instruction}\n{input}" if input else instruction


def conversation(instruction: str, input: str, output: str) -> list[Message]:
    """Makes a conversation of one question and its answer."""
    return [
        Message(role="user", content=user_text(instruction, input)),
        Message(role="assistant", content=output),
    ]
