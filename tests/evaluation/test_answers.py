"""Answers are recognised in every script, composed or not; and compared as closed-book question answering does."""

from __future__ import annotations

import unicodedata

import pytest

from loramoe.evaluation.answers import exact_match, f1, joined, normalised, starts_with

DECOMPOSED = unicodedata.normalize("NFD", "café de nuit")


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("\ntea, thanks", " tea", True),
        ("teacher", "tea", False),
        ("19", "1", False),
        ("(a)b", "(a)", True),  # the answer itself ends its word
        ("a.b", "axb", False),  # no regular expression
        ("iPhone手机", "iPhone", True),  # no spaces between words
        ("दिल्ली एक नगर है", "दिल", False),  # Devanagari: a virama continues the word
        ("ที่นี่", "ท", False),  # Thai: a vowel sign belongs to its consonant
        ("ភ្នំពេញជាក្រុង", "ភ្នំពេញ", True),
        ("서울은 크다", "서울", True),  # Korean attaches particles to the word
        (DECOMPOSED, "cafe", False),  # a combining accent is part of the letter
        (DECOMPOSED, "café", True),
    ],
)
def test_an_answer_ends_where_a_word_ends(text: str, answer: str, expected: bool) -> None:
    assert starts_with(text, answer) is expected


def test_an_answer_follows_a_space_where_the_script_has_spaces() -> None:
    assert joined("Her name is ", " Ada") == "Her name is Ada"
    assert joined("เมืองหลวงคือ", "กรุงเทพ") == "เมืองหลวงคือกรุงเทพ"
    assert joined("한국의 수도는", "서울") == "한국의 수도는 서울"


def test_normalised() -> None:
    texts = ("The  Beatles!", "«L'Été»", unicodedata.normalize("NFD", "Été"), "A", "+", "theatre", "北京。")
    assert list(map(normalised, texts)) == ["beatles", "lété", "été", "a", "+", "theatre", "北京"]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "shared"),
    [
        ("the Beatles.", ["Bob", "Beatles"], 1, 1),
        ("Ada Lovelace", ["Ada"], 0, 2 / 3),
        ("Ada Ada", ["Ada Lovelace"], 0, 1 / 2),
        ("", ["A"], 0, 0),
        ("\n Oslo\nQuestion: and where is Bergen?", ["Oslo"], 1, 1),  # only the first line counts,
        ("one\nthree", ["one\ntwo"], 0, 1 / 2),  # unless the answer has several
        ("กรุงเทพฯ", ["กรุงเทพ"], 0, 12 / 13),  # six graphemes and seven
    ],
)
def test_exact_match_and_f1(prediction: str, answers: list[str], exact: float, shared: float) -> None:
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(shared)
