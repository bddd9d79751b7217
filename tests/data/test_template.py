"""Templates: which ids a prompt and its target have, and what happens to special tokens inside the data."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from loramoe.data import TEMPLATES, get_template

BOS, EOS = 0, 1
FRAMES = {"<s> $A": [BOS], "$A": [], "<s> $A </s>": [BOS]}


def spell(tokenizer, text: str) -> list[int]:
    """Ids of a text that holds no special token."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("frame", FRAMES)
def test_release_adds_each_special_token_once(make_tokenizer, row, frame):
    tokenizer = make_tokenizer(frame)
    template = get_template("release", tokenizer)
    bare, full = template.encode([row(), row(instruction="Read:", input="A b.", output="Yes")])
    assert bare.prompt == [*FRAMES[frame], *spell(tokenizer, "Who?"), EOS]
    assert bare.target == [*spell(tokenizer, "Me."), EOS]
    assert full.prompt == [*FRAMES[frame], *spell(tokenizer, "Read:\nA b."), EOS]
    assert full.target == [*spell(tokenizer, "Yes"), EOS]


def test_release_equals_the_text_with_the_token_spelled_out(tokenizer, row):
    """The original release wrote `</s>` behind the text and let the tokenizer find it."""
    (encoded,) = get_template("release", tokenizer).encode([row(instruction="Wer?", input="Ü 漢")])
    assert encoded.prompt == tokenizer("Wer?\nÜ 漢</s>")["input_ids"]
    assert encoded.target == tokenizer("Me.</s>", add_special_tokens=False)["input_ids"]


@given(instruction=st.text(min_size=1), output=st.text(min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_release_decodes_to_what_the_row_says(tokenizer, row, instruction, output):
    instruction, output = (text.encode("utf-8", "ignore").decode() + "." for text in (instruction, output))
    (encoded,) = get_template("release", tokenizer).encode([row(instruction=instruction, output=output)])
    assert tokenizer.decode(encoded.prompt[1:-1]) == instruction
    assert tokenizer.decode(encoded.target[:-1]) == output


def test_release_takes_special_tokens_in_a_row_for_text(tokenizer, row):
    (encoded,) = get_template("release", tokenizer).encode([row(instruction="<s>a</s>b", output="</s>c")])
    assert not encoded.special
    assert encoded.prompt.count(BOS) == encoded.prompt.count(EOS) == encoded.target.count(EOS) == 1
    assert tokenizer.decode(encoded.prompt[1:-1]) == "<s>a</s>b"
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [EOS], "the tokenizer itself is left as it was"


def test_release_does_so_with_a_tokenizer_written_in_python(row):
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    encoded = get_template("release", tokenizer).encode([row(instruction="a</s>b", output="</s>c"), row()])
    for prompt, target, _ in encoded:
        assert prompt.count(tokenizer.eos_token_id) == target.count(tokenizer.eos_token_id) == 1
    assert encoded[0].prompt == [3 + byte for byte in b"a</s>b"] + [tokenizer.eos_token_id]


def test_chat_divides_the_conversation_behind_the_generation_prompt(chat_tokenizer, row):
    (encoded,) = get_template("chat", chat_tokenizer).encode([row(input="A b.")])
    assert chat_tokenizer.decode(encoded.prompt) == "<|user|>Who?\nA b.</s><|assistant|>"
    assert chat_tokenizer.decode(encoded.target) == "Me.</s>"
    assert encoded.target[-1] == EOS
    assert not encoded.special


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
def test_chat_marks_rows_whose_text_becomes_a_special_token(chat_tokenizer, row, field):
    template = get_template("chat", chat_tokenizer)
    plain, marked = template.encode([row(), row(**{field: "a</s>b"})])
    assert (plain.special, marked.special) == (False, True)
    assert (marked.prompt + marked.target).count(EOS) == (plain.prompt + plain.target).count(EOS) + 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_alone_is_the_prompt_of_training(chat_tokenizer, row, name):
    template = get_template(name, chat_tokenizer)
    bare, full = template.encode([row(), row(input="A b.")])
    assert template.prompt_ids("Who?") == bare.prompt
    assert template.prompt_ids("Who?", "A b.") == full.prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_rows_give_no_ids(chat_tokenizer, name):
    assert get_template(name, chat_tokenizer).encode([]) == []


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ messages | length }}{% for turn in messages %}{{ turn.content }}{% endfor %}",  # the prompt changes
        "{{ messages[0].content }}",  # the answer is left out
        "{% for t in messages %}{{ t.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}",
    ],
)
def test_chat_refuses_a_template_that_cannot_be_divided(make_tokenizer, row, chat_template):
    template = get_template("chat", make_tokenizer(chat_template=chat_template))
    message = r"prompt is not the beginning of its whole conversation.*\(row: 'Who\?', output: 'Me\.'\)\. Remove blanks"
    with pytest.raises(ValueError, match=message):
        template.encode([row()])


def test_release_needs_an_end_of_sequence_token(make_tokenizer):
    with pytest.raises(
        ValueError, match=r"ends prompt and answer with tokenizer\.eos_token, which is not set\. Set it"
    ):
        get_template("release", make_tokenizer(eos_token=None))


def test_chat_needs_a_chat_template(tokenizer):
    with pytest.raises(
        ValueError, match=r"needs tokenizer\.chat_template, which is not set .* Set it, or use .*'release'"
    ):
        get_template("chat", tokenizer)


def test_an_unknown_template(tokenizer):
    with pytest.raises(
        ValueError, match=r"prompt template must be one of 'release', 'chat'; got 'alpaca'\. Choose one\."
    ):
        get_template("alpaca", tokenizer)
