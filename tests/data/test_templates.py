"""Templates: which ids a conversation has, which of them are learnt, and which conversations are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer

from loramoe.data import Encoded, TemplateError, conversation, get_template

BOS, EOS = 0, 1
FRAMES = {"<s> $A": [BOS], "$A": [], "<s> $A </s>": [BOS]}
TINY_LLAMA = Path(__file__).parents[2] / "data" / "tiny_llama"

ONE = conversation("Who?", "", "Me.")
TWO = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be brief."}

TURNS = "{% for m in messages %}<|{{ m.role }}|>BEFORE{{ m.content }}AFTER{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
THINK = "{% if m.role == 'assistant' %}<think></think>{% endif %}"
THINK_LAST = "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"

COLON = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PARTS = "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"


def turns(before: str, after: str) -> str:
    return TURNS.replace("BEFORE", before).replace("AFTER", after)


PLAIN = turns("", "</s>\n") + PROMPT


def spell(tokenizer, text: str) -> list[int]:
    """Ids of a text that holds no special token."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(template, *conversations) -> list[Encoded]:
    encoded = template.encode(conversations)
    assert all(isinstance(one, Encoded) for one in encoded), encoded
    return encoded


@pytest.fixture
def chat(make_tokenizer):
    """Makes a chat template of the byte-level tokenizer."""
    return lambda text: get_template("chat", make_tokenizer(chat_template=text))


@pytest.mark.parametrize("frame", FRAMES)
def test_release_ends_each_turn_and_learns_the_answers(make_tokenizer, frame):
    tokenizer = make_tokenizer(frame)
    encoded, full = encode(
        get_template("release", tokenizer), [SYSTEM, *ONE, *TWO], conversation("Read:", "A b.", "Yes")
    )
    assert full.prompt == [*FRAMES[frame], *spell(tokenizer, "Read:\nA b."), EOS]
    assert full.input_ids == [*full.prompt, *spell(tokenizer, "Yes"), EOS]
    asked, said, again, so = ([*spell(tokenizer, text), EOS] for text in ("Be brief.\nWho?", "Me.", "Why?", "So."))
    assert encoded.input_ids == [*FRAMES[frame], *asked, *said, *again, *so]
    assert encoded.target == said + so
    assert encoded.labels[-len(so) :] == so


def test_release_takes_special_tokens_in_a_sample_for_text(tokenizer):
    (encoded,) = encode(get_template("release", tokenizer), conversation("<s>a</s>b", "", "</s>c"))
    assert not encoded.special
    assert encoded.prompt.count(BOS) == encoded.prompt.count(EOS) == encoded.target.count(EOS) == 1
    assert tokenizer.decode(encoded.prompt[1:-1]) == "<s>a</s>b"
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [EOS], "the tokenizer itself is left as it was"


def test_release_does_so_with_a_tokenizer_written_in_python():
    tokenizer = ByT5Tokenizer()
    (encoded,) = encode(get_template("release", tokenizer), conversation("a</s>b", "", "</s>c"))
    assert encoded.prompt == [3 + byte for byte in b"a</s>b"] + [tokenizer.eos_token_id]


def test_chat_learns_answers_and_their_ends_alone(chat):
    template = chat(PLAIN)
    single, several = encode(template, ONE, [SYSTEM, *ONE, *TWO])
    decode = template.tokenizer.decode
    assert (decode(single.prompt), decode(single.target)) == ("<|user|>Who?</s>\n<|assistant|>", "Me.</s>")
    assert decode(several.target) == "Me.</s>So.</s>"
    whole = template.tokenizer.apply_chat_template([SYSTEM, *ONE, *TWO], return_dict=False)
    assert several.input_ids == whole
    assert all(label in (-100, token) for token, label in zip(several.input_ids, several.labels, strict=True))


@pytest.mark.parametrize("block", [THINK, THINK_LAST])
def test_what_the_template_writes_before_an_answer_belongs_to_the_prompt(chat, block):
    template = chat(turns(block, "</s>") + PROMPT)
    single, several = encode(template, ONE, [*ONE, *TWO])
    assert template.tokenizer.decode(single.prompt) == "<|user|>Who?</s><|assistant|><think></think>"
    assert template.chat_ids(ONE[:1]) == single.prompt
    assert template.tokenizer.decode(several.target) == "Me.</s>So.</s>"


@pytest.mark.parametrize("text", [PLAIN, turns(THINK, "</s>") + PROMPT, COLON, turns("", "")])
@pytest.mark.parametrize("make", ["bytes", "tiny_llama"])
def test_generation_gets_the_prompt_of_training(make_tokenizer, make, text):
    tokenizer = make_tokenizer() if make == "bytes" else AutoTokenizer.from_pretrained(TINY_LLAMA)
    tokenizer.chat_template = text
    template = get_template("chat", tokenizer)
    for answer in ("think", " Me. \n", "\n\nMe.", "漢 😀"):
        question = conversation("Who?", "A b.", answer)
        single, several = encode(template, question, [*ONE, TWO[0], {**TWO[1], "content": answer}])
        assert template.chat_ids(question[:1]) == single.prompt
        assert tokenizer.decode(single.target, skip_special_tokens=True).strip() == answer.strip()
        asked = template.chat_ids([*ONE, TWO[0]])
        assert asked == several.input_ids[: len(asked)]
        assert several.labels[len(asked)] == several.input_ids[len(asked)]


def test_a_chat_goes_on_though_the_template_drops_earlier_thoughts(chat):
    template = chat(turns(THINK, "</s>").replace("m.content", "m.content.split('</think>')[-1]") + PROMPT)
    ids = template.chat_ids([ONE[0], {"role": "assistant", "content": "a</think>Me."}, TWO[0]])
    assert template.tokenizer.decode(ids).endswith("Me.</s><|user|>Why?</s><|assistant|><think></think>")


def test_chat_with_a_tokenizer_written_in_python():
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = COLON
    template = get_template("chat", tokenizer)
    (encoded,) = encode(template, [*ONE, *TWO])
    assert encoded.target == [3 + byte for byte in b"Me."] + [1] + [3 + byte for byte in b"So."] + [1]
    assert template.chat_ids([*ONE, TWO[0]]) == encoded.input_ids[: -len("So.") - 1]


@pytest.mark.parametrize(
    ("after", "end"),
    [("</s>", "</s>"), ("<|end|>\n", "<|end|>"), ("\n<|stop|></s>", "\n<|stop|>"), ("\n", "\n"), ("", "")],
)
def test_what_ends_an_answer_in_training_ends_generation(make_tokenizer, after, end):
    tokenizer = make_tokenizer(chat_template=turns("", after) + PROMPT)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True), AddedToken("<|stop|>", special=False)])
    template = get_template("chat", tokenizer)
    (encoded,) = encode(template, ONE)
    assert tokenizer.decode(encoded.target) == f"Me.{end}"
    assert template.end_ids == (() if after.strip() == "" else tuple(encoded.target[-1:]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "divided"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}" + PROMPT, "divided"),
        ("{{ messages[0].content }}", "leaves out"),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}</s>{% endfor %}", "assistant: 'a</think>Me"),
        ("{% if 'a' in messages[-1].content %}odd{% endif %}" + PLAIN, "user: 'Who"),
        ("{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}", "leaves out"),
        ("{% for m in messages %}" + PARTS + "</s>{% endfor %}" + PROMPT, "leaves out"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('System\nfirst.') }}{% endif %}", r"System first\.$"),
        ("{{ messages[0].content + 1 }}", "refuses"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused(chat, text, words):
    refused, same = chat(text).encode([conversation("Who?", "", "a</think>Me.")] * 2)
    assert isinstance(refused, TemplateError)
    assert re.search(words, str(refused))
    assert "\n" not in str(refused)
    assert str(same) == str(refused)


def test_the_others_are_encoded_all_the_same(chat):
    template = chat("{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}" + PLAIN)
    first, refused, last = template.encode([ONE, conversation("no", "", "Me."), [SYSTEM, *ONE]])
    assert isinstance(refused, TemplateError)
    assert [first, last] == encode(template, ONE, [SYSTEM, *ONE])
    assert template.encode([]) == []


def test_a_template_that_does_not_compile_is_refused_at_once(chat):
    with pytest.raises(ValueError, match="does not compile: unexpected '}'"):
        chat("{% for m in messages %}{{ m.content }{% endfor %}")


def test_chat_marks_conversations_whose_words_become_a_special_token(chat_tokenizer):
    chat_tokenizer.add_tokens([AddedToken("<|reserved|>", special=True)])
    assert "<|reserved|>" not in chat_tokenizer.all_special_tokens
    question, answer = ONE
    ended = {**answer, "content": "Me.</s> b"}
    reserved = {**question, "content": "Who<|reserved|>?"}
    chats = [[SYSTEM, *ONE], [SYSTEM, question, ended], [SYSTEM, reserved, answer]]
    assert [one.special for one in encode(get_template("chat", chat_tokenizer), *chats)] == [False, True, True]


def test_a_sample_is_rendered_once_and_all_are_tokenised_together(chat, monkeypatch):
    """So that `chat` is at least half as fast as `release`."""
    template, rendered, tokenised = chat(PLAIN), [], []
    encode(template, ONE, [SYSTEM, *ONE])
    tokenizer, render, ids = template.tokenizer, template.tokenizer.apply_chat_template, template._ids
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda c, **more: rendered.extend(c) or render(c, **more))
    monkeypatch.setattr(template, "_ids", lambda texts, *more: tokenised.append(texts) or ids(texts, *more))
    encode(template, *[ONE, [SYSTEM, *ONE]] * 5)
    assert (len(rendered), len(tokenised)) == (10, 1)


def test_what_a_tokenizer_lacks_is_named(tokenizer, make_tokenizer):
    with pytest.raises(ValueError, match=r"'release' .*eos_token, which is not set\. Set it"):
        get_template("release", make_tokenizer(eos_token=None))
    with pytest.raises(ValueError, match=r"chat_template, which is not set .*Set it, or use .*'release'"):
        get_template("chat", tokenizer)
    with pytest.raises(ValueError, match=r"one of 'release', 'chat'; got 'alpaca'\. Choose one\."):
        get_template("alpaca", tokenizer)
