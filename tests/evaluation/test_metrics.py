"""Answers are compared as closed-book question answering does, and not where nothing would be left of them."""

from __future__ import annotations

import pytest

from loramoe.evaluation import exact_match, f1, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("«L'Été»", "lété"),
        ("an  apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("A", "a"),  # an option, no article
        ("+", "+"),
        ("theatre", "theatre"),
        ("北京。", "北京"),
    ],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the Beatles.", ["Beatles"], 1.0),
        ("Ada", ["Bob", "ada"], 1.0),
        ("Ada Lovelace", ["Ada"], 0.0),
        ("", ["A"], 0.0),
        ("Oslo\nQuestion: and where is Bergen?", ["Oslo"], 1.0),
        ("\n Oslo", ["Oslo"], 1.0),
        ("one\ntwo", ["one\nTwo"], 1.0),
        ("one\nthree", ["one\ntwo"], 0.0),
    ],
)
def test_exact_match(prediction: str, answers: list[str], expected: float) -> None:
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Ada Lovelace", ["Ada"], 2 / 3),
        ("Ada Lovelace", ["Bob", "the Ada Lovelace"], 1.0),
        ("Ada Ada", ["Ada Lovelace"], 0.5),
        ("Bob", ["Ada"], 0.0),
        ("", ["Ada"], 0.0),
        ("北京市", ["北京"], 0.8),
        ("Ada\nBob", ["Ada"], 1.0),
    ],
)
def test_f1(prediction: str, answers: list[str], expected: float) -> None:
    assert f1(prediction, answers) == pytest.approx(expected)
