"""Tokens are told apart by what is read: spaces, parts of characters, and what would not be seen or move other text."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from loramoe.report.tokens import text_of, visible

ROOT = Path(__file__).resolve().parents[2]


class Pieces:
    """A tokenizer as sentencepiece (▁), or one of bytes, that knows four pieces, and none of id 4."""

    pieces = ("▁city", "city", "<0xE4>", "Ġword", None)
    texts = ("city", "city", "\ufffd", " word", "")

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, id: int) -> str | None:
        return self.pieces[id]

    def decode(self, ids: list[int], **_: object) -> str:
        return self.texts[ids[0]]


def test_the_space_before_a_word_is_kept_and_parts_of_characters_have_a_name():
    texts = [text_of(Pieces(), id) for id in range(6)]
    assert texts == [" city", "city", "<0xE4>", " word", "<4>", "<5>"]


def test_words_of_the_embedded_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny_llama")
    ids = tokenizer("Which city?\n", add_special_tokens=False).input_ids
    assert "".join(text_of(tokenizer, id) for id in ids).strip(" ") == "Which city?\n"
    assert text_of(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token


@pytest.mark.parametrize(
    ("text", "seen"),
    [(" a", "␣a"), ("\n\t", "\\n\\t"), ("\u202ea", "\\u202ea"), ("城", "城"), ("\x00", "\\x00"), ("\u200b", "\\u200b")],
)
def test_what_leaves_no_mark_is_escaped(text: str, seen: str):
    assert visible(text) == seen
