"""What a token reads, so that a person can tell it from others: spaces are seen, nothing is drawn that is not meant."""

from __future__ import annotations

from typing import Any

WORD_BEGINS = "▁"  # how sentencepiece writes the space before a word, which its decoding drops
SPACE = "␣"


def text_of(tokenizer: Any, id: int) -> str:
    """What a token stands for, its leading space included.

    Args:
        tokenizer: The model's.
        id: Id of the token; models may have more of them than their tokenizer.

    Returns:
        Its text; of a token that is a part of a character its name there; of an id that the tokenizer does not have,
        as vocabularies have gaps, `<id>`.
    """
    piece = tokenizer.convert_ids_to_tokens(id) if id < len(tokenizer) else None
    if piece is None:
        return f"<{id}>"
    text: str = tokenizer.decode([id], clean_up_tokenization_spaces=False)
    if not text or "\ufffd" in text:
        return str(piece).replace(WORD_BEGINS, " ")
    return f" {text}" if piece.startswith(WORD_BEGINS) and not text.startswith(" ") else text


def visible(text: str, space: str = SPACE) -> str:
    """A text on one line: spaces as ␣, and all else that leaves no mark, or moves other text, by its escape.

    Args:
        text: Any text.
        space: What to write for a space.

    Returns:
        The same, to be read; not yet escaped for HTML or Markdown.
    """
    return "".join(
        space if character == " " else character if character.isprintable() else repr(character)[1:-1]
        for character in text
    )
