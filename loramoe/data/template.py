"""Prompt templates: from the words of a row to the token ids of a prompt and its target.

`release` is the layout that the original LoRAMoE release trained with; `chat` hands the row to the tokenizer's own chat
template. Both take every special token from the tokenizer by id, so that any tokenizer will do.

What a row says is text, never control: a `</s>` inside an instruction must not end the prompt. `release` therefore
encodes the text of rows with `split_special_tokens=True`. A chat template writes its own special tokens as text into
the same string as the user's, where nobody can tell them apart; so `chat` keeps them as they are and marks such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from loramoe.data.collate import IGNORE_INDEX
from loramoe.data.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """A row as token ids.

    Attributes:
        prompt: What the model is given.
        target: What it has to say, with the token that ends it.
        special: Whether text of the row itself became a special token.
    """

    prompt: list[int]
    target: list[int]
    special: bool = False

    def sample(self, max_seq_length: int) -> Sample | None:
        """Makes what the model learns from, the target cut where it is too long.

        Args:
            max_seq_length: Most tokens of prompt and target together.

        Returns:
            The sample; None if the prompt leaves no room for one token of the target.
        """
        room = max_seq_length - len(self.prompt)
        if room < 1:
            return None
        target = self.target[:room]
        return Sample(self.prompt + target, [IGNORE_INDEX] * len(self.prompt) + target)


class Sample(NamedTuple):
    """A row as the model learns from it.

    Attributes:
        input_ids: Prompt and target.
        labels: The same, -100 on the prompt.
    """

    input_ids: list[int]
    labels: list[int]


class PromptTemplate(Protocol):
    """What a template can do; made for one tokenizer by `get_template`."""

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encodes rows of the training data, one result per row."""

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes the prompt alone, the same ids as in training, to generate an answer from."""


class ReleaseTemplate:
    r"""`instruction[\ninput]` and the end-of-sequence token, then `output` and the end-of-sequence token.

    The prompt gets the special tokens that the tokenizer adds by itself, such as a beginning-of-sequence token; the
    target follows without any.

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
        self.eos_id: int = tokenizer.eos_token_id

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encodes rows of the training data, one result per row."""
        prompts = self._prompts([user_text(row["instruction"], row["input"]) for row in rows])
        targets = self._text_ids([row["output"] for row in rows], add_special_tokens=False)
        return [Encoded(prompt, [*target, self.eos_id]) for prompt, target in zip(prompts, targets, strict=True)]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes the prompt alone, the same ids as in training, to generate an answer from."""
        return self._prompts([user_text(instruction, input)])[0]

    def _prompts(self, texts: list[str]) -> list[list[int]]:
        # Some tokenizers append the end-of-sequence token themselves; one is enough.
        prompts = self._text_ids(texts, add_special_tokens=True)
        return [ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id] for ids in prompts]

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


class ChatTemplate:
    """The tokenizer's chat template: a user turn as the prompt, the assistant's turn as the target.

    The prompt is the user's turn with the generation prompt; the target is what the template adds when it writes both
    turns.

    Args:
        tokenizer: Any tokenizer of transformers that has a chat template.

    Raises:
        ValueError: If the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                "the prompt template 'chat' needs tokenizer.chat_template, which is not set (base models have none). "
                "Set it, or use the prompt template 'release'."
            )
        self.tokenizer = tokenizer

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Encodes rows of the training data, one result per row.

        Raises:
            ValueError: If the template writes the user's turn differently once an answer follows, or leaves the answer
                out.
        """
        users = [[_turn("user", user_text(row["instruction"], row["input"]))] for row in rows]
        wholes = [[*user, _turn("assistant", row["output"])] for user, row in zip(users, rows, strict=True)]
        prompt_ids = self._chat_ids(users, add_generation_prompt=True)
        whole_ids = self._chat_ids(wholes, add_generation_prompt=False)
        return [self._divide(*parts) for parts in zip(rows, prompt_ids, whole_ids, strict=True)]

    def prompt_ids(self, instruction: str, input: str = "") -> list[int]:
        """Encodes the prompt alone, the same ids as in training, to generate an answer from."""
        return self._chat_ids([[_turn("user", user_text(instruction, input))]], add_generation_prompt=True)[0]

    def _chat_ids(self, chats: list[list[dict[str, str]]], add_generation_prompt: bool) -> list[list[int]]:
        if not chats:
            return []
        ids = self.tokenizer.apply_chat_template(
            chats, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt
        )
        return cast("list[list[int]]", ids)

    def _divide(self, row: Row, prompt: list[int], whole: list[int]) -> Encoded:
        if len(whole) <= len(prompt) or whole[: len(prompt)] != prompt:
            raise ValueError(
                "the chat template's prompt is not the beginning of its whole conversation, so that prompt and answer "
                f"cannot be told apart (row: {row['instruction'][:60]!r}, output: {row['output'][:60]!r}). "
                "Remove blanks around the output, or use a chat template that appends the answer, or 'release'."
            )
        words = row["instruction"], row["input"], row["output"]
        special = any(token in text for token in self.tokenizer.all_special_tokens for text in words)
        return Encoded(prompt, whole[len(prompt) :], special)


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


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
