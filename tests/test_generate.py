"""The commands that answer: streaming, by the template of the training, in single prompts or in turns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import PromptFormat, conversation, get_template, save_prompt_format
from loramoe.generate import answer, chat, main
from loramoe.loading import load

CHAT = "{% for m in messages %}{{ raise_exception('Not that.') if m.content == 'w3' }}{{ m.content }} w9 {% endfor %}"


@pytest.fixture
def adapter(tiny_task: Any, saved_on_tiny_task: str) -> Path:
    """An adapter that was trained with a chat template, with its tokenizer beside it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    tokenizer.chat_template = CHAT
    save_tokenizer(tokenizer, Path(saved_on_tiny_task))
    save_prompt_format(saved_on_tiny_task, PromptFormat("chat"))
    return Path(saved_on_tiny_task)


def test_the_prompt_is_that_of_the_training(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load(None, str(adapter))
    turns = conversation("w1 w2", "w4", "")[:1]
    texts = {name: answer(model, tokenizer, get_template(name, tokenizer), turns, 5) for name in ("chat", "release")}
    assert texts["chat"] != texts["release"]
    for wanted, name in (([], "chat"), (["--template", "release"], "release")):
        main(["--adapter", str(adapter), "--prompt", "w1 w2", "--input", "w4", "--max_new_tokens", "5", *wanted])
        assert capsys.readouterr().out.strip() == texts[name]


def test_every_line_is_answered_alone_or_in_turns(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(None, str(adapter))
    template, system = get_template("chat", tokenizer), {"role": "system", "content": "w8"}
    one, other = (conversation(text, "", "")[0] for text in ("w1 w2", "w5"))
    first = answer(model, tokenizer, template, [system, one], 4)
    later = answer(model, tokenizer, template, [system, one, {"role": "assistant", "content": first}, other], 4)
    alone = answer(model, tokenizer, template, [system, other], 4)
    for command, lines, expected in (
        (main, "w1 w2\n\nw5\n", [first, alone]),
        (chat, "w1 w2\nw5\n/new\nw5\n", [first, later, alone]),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        command(["--adapter", str(adapter), "--max_new_tokens", "4", "--system", "w8"])
        assert [line.strip() for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "w3"], "Not that."),
        (["--prompt", " ".join(["w1"] * 70)], "the model knows 64 positions"),
        (["--prompt", "w1", "--adapter", "nowhere"], "no adapter at nowhere"),
        (["--temperature=nan"], "argument --temperature: expected a number of at least 0, got 'nan'."),
    ],
)
def test_mistakes_are_reported_in_one_line(
    adapter: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--adapter", str(adapter), *flags])
    assert ended.value.code != 0
    assert message in capsys.readouterr().err.splitlines()[-1]
