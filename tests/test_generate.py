"""The commands that answer: streaming, by the template of the training, in single prompts or in turns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import PromptFormat, conversation, save_prompt_format
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
    flags = ["--adapter", str(adapter), "--prompt", "w1 w2", "--input", "w4", "--max_new_tokens", "5"]
    model, tokenizer = load(None, str(adapter))
    options = {"input": "w4", "max_new_tokens": 5}
    texts = {name: answer(model, tokenizer, "w1 w2", template=name, **options) for name in ("chat", "release")}
    assert texts["chat"] != texts["release"]
    for wish, name in (([], "chat"), (["--template", "release"], "release")):
        main([*flags, *wish])
        assert capsys.readouterr().out.strip() == texts[name]


def test_every_line_is_answered_alone_or_in_turns(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(None, str(adapter))
    options = {"template": "chat", "max_new_tokens": 4}
    system = [{"role": "system", "content": "w8"}]
    first = answer(model, tokenizer, "w1 w2", **options, turns=system)
    later = answer(model, tokenizer, "w5", **options, turns=[*system, *conversation("w1 w2", "", first)])
    alone = answer(model, tokenizer, "w5", **options, turns=system)
    flags = ["--adapter", str(adapter), "--max_new_tokens", "4", "--system", "w8"]
    for command, lines, expected in (
        (main, "w1 w2\n\nw5\n", [first, alone]),
        (chat, "w1 w2\nw5\n/new\nw5\n", [first, later, alone]),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        command(flags)
        assert [line.strip() for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "w3"], "Not that."),
        (["--prompt", " ".join(["w1"] * 70)], "the model knows 64 positions. Shorten it."),
        (["--prompt", "w1", "--device", "cuda:99"], "set --device to one that is here, got 'cuda:99'"),
        (["--prompt", "w1", "--adapter", "nowhere"], "no adapter at nowhere: adapter_config.json is not there."),
        (["--max_new_tokens=0"], "argument --max_new_tokens: expected a whole number of at least 1, got '0'."),
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
