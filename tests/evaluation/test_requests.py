"""Tokens of questions: those of the training, or a sentence as it stands."""

from __future__ import annotations

import pytest

from loramoe.data import TemplateError, conversation, get_template
from loramoe.evaluation import Example
from loramoe.evaluation.requests import encode, joined


def cloze(prompt: str, answer: str, *choices: str) -> Example:
    return Example(prompt, "", answer, (answer,), choices, None, cloze=True)


def test_an_instruction_is_laid_out_as_in_training(tokenizer) -> None:
    template = get_template("release", tokenizer)
    example = Example("w1 w2", "w3", "w5", ("w5",), ("w4", "w5 w6", "w5"), 1)
    (request,) = encode([example], template, tokenizer)
    samples = [conversation("w1 w2", "w3", text) for text in example.choices]
    assert request.targets == [encoded.target for encoded in template.encode(samples)]
    assert request.prompt == request.question == template.prompt_ids("w1 w2", "w3")


def test_a_question_that_the_template_refuses_is_named(tokenizer) -> None:
    tokenizer.chat_template = "{{ raise_exception('System first.') }}"
    example = Example("w1 w2", "", "w5", ("w5",), (), 1, where="row 3")
    with pytest.raises(TemplateError, match=r"^row 3: .*System first\."):
        encode([example], get_template("chat", tokenizer), tokenizer)


def test_a_cloze_has_no_template_and_no_end(tokenizer) -> None:
    (request,) = encode([cloze("w1 w2", "w3", "w3", "w4 w5")], get_template("release", tokenizer), tokenizer)
    assert request.question == request.prompt == [1, 5, 6]  # <s> w1 w2
    assert request.targets == [[7], [8, 9]]


class Joins:
    """A tokenizer that makes one token of `ab`, and one of every other character."""

    bos_token_id, eos_token_id = None, 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text.replace("日本", "@")]}


def test_where_a_tokenizer_joins_prompt_and_answer_the_prompt_ends_before() -> None:
    (request,) = encode([cloze("在日", "本", "本", "木")], None, Joins())  # type: ignore[arg-type]
    assert request.question == [ord("在"), ord("日")]
    assert request.prompt == [ord("在")]
    assert request.targets == [[ord("@")], [ord("日"), ord("木")]]


def test_a_prompt_that_is_joined_altogether_begins_with_the_end_token() -> None:
    (request,) = encode([cloze("日", "本")], None, Joins())  # type: ignore[arg-type]
    assert (request.prompt, request.targets) == ([0], [[ord("@")]])


def test_an_answer_follows_after_a_space_where_words_have_one() -> None:
    assert joined("born in ", " Oslo ") == joined("born in", "Oslo") == "born in Oslo"
    assert joined("首都是", "北京") == "首都是北京"
    assert joined("the word is", "北京") == "the word is北京"
