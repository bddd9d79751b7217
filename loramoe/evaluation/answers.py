"""Whether a text is the answer: as a beginning (recall), as a whole (exact match), or in part (F1); in every script."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

import regex

_NO_SPACES: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
"""Scripts that set no words apart."""

# Korean attaches particles to words: they may follow an answer too.
_LETTER: Final = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{_NO_SPACES}\p{{Hangul}}]]"
_TOKENS: Final = regex.compile(rf"(?=[{_NO_SPACES}\p{{Hangul}}])\X|[\S--[{_NO_SPACES}\p{{Hangul}}]]+", regex.V1)
_ARTICLES: Final = regex.compile(r"\b(a|an|the)\b")


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), without spaces around it."""
    return unicodedata.normalize("NFC", text).strip()


def starts_with(text: str, answer: str) -> bool:
    """Whether a text starts with an answer that ends where a word ends: "tea, thanks" with "tea", "teacher" not."""
    ends = rf"(?!\p{{M}})(?!(?<={_LETTER}){_LETTER})"
    return regex.match(regex.escape(composed(answer), special_only=True) + ends, composed(text), regex.V1) is not None


def joined(prompt: str, answer: str) -> str:
    """Appends an answer to a prompt: after one space, or directly in scripts that have no spaces."""
    prompt, answer = prompt.rstrip(), answer.strip()
    together = regex.search(f"[{_NO_SPACES}]$", prompt) or regex.match(f"[{_NO_SPACES}]", answer)
    return prompt + answer if together else f"{prompt} {answer}"


def normalised(text: str) -> str:
    """A text as closed-book question answering compares it: lower case, no punctuation, no articles, single spaces.

    What would leave nothing, such as the option "A" or "+", is kept.
    """
    lower = composed(text).lower()
    bare = "".join(c for c in lower if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", bare).split() or bare.split() or lower.split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if a prediction is one of the accepted answers, else 0.0."""
    text = normalised(_first_line(prediction, answers))
    return float(any(text == normalised(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The share of equal words (characters, in scripts without spaces), as harmonic mean of precision and recall.

    The best of the accepted answers counts.
    """
    words = _TOKENS.findall(normalised(_first_line(prediction, answers)))
    return max(_f1(words, _TOKENS.findall(normalised(answer))) for answer in answers)


def _f1(found: Sequence[str], expected: Sequence[str]) -> float:
    shared = (Counter(found) & Counter(expected)).total()
    return 2 * shared / (len(found) + len(expected)) if shared else 0.0


def _first_line(prediction: str, answers: Sequence[str]) -> str:
    """A base model goes on after its answer; only its first line counts, unless an accepted answer has several."""
    text = prediction.strip()
    return text if any("\n" in answer.strip() for answer in answers) else text.partition("\n")[0]
