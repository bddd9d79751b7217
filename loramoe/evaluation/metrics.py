"""Whether a text says what it should: exact match and token F1, as closed-book question answering compares answers.

Case, punctuation, English articles and the width of spaces do not count. Where nothing else is left of an answer, such
as "A" in a list of options, they do: or else an empty prediction would be right.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from loramoe.recall import SPACELESS

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TOKENS = re.compile(rf"{SPACELESS}|(?:(?!{SPACELESS})\S)+")


def normalised(text: str) -> str:
    """A text as answers are compared.

    Args:
        text: An answer or a prediction.

    Returns:
        In lower case, without punctuation and articles, single spaces between words.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    bare = "".join(c for c in lower if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    words = _ARTICLES.sub(" ", bare).split()
    return " ".join(words or bare.split() or lower.split())


def comparable(prediction: str, answers: Sequence[str]) -> str:
    """The part of a prediction that is compared: its first line, unless an accepted answer has several.

    Args:
        prediction: What the model said.
        answers: The accepted answers.

    Returns:
        A base model goes on after its answer, with further questions of its own; that is not counted against it.
    """
    text = prediction.strip()
    return text if any("\n" in answer.strip() for answer in answers) else text.partition("\n")[0]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether a prediction is one of the accepted answers.

    Args:
        prediction: What the model said.
        answers: The accepted answers, at least one.

    Returns:
        1.0 or 0.0.
    """
    said = normalised(comparable(prediction, answers))
    return float(any(said == normalised(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """How much of a prediction and of an accepted answer are the same words, the best of the answers.

    Args:
        prediction: What the model said.
        answers: The accepted answers, at least one.

    Returns:
        The harmonic mean of precision and recall of the words (of Chinese and Japanese: the characters), in [0, 1].
    """
    said = _TOKENS.findall(normalised(comparable(prediction, answers)))
    return max(_f1(said, _TOKENS.findall(normalised(answer))) for answer in answers)


def _f1(said: Sequence[str], expected: Sequence[str]) -> float:
    shared = (Counter(said) & Counter(expected)).total()
    return 2 * shared / (len(said) + len(expected)) if shared else 0.0
