"""The prompt format kept with an adapter: read back whole; a request that differs from it is reported."""

from __future__ import annotations

import pytest

from loramoe.data import PromptFormat, choose_prompt_format, read_prompt_format, save_prompt_format
from loramoe.data.templates import PROMPT_FILE

CHAT = PromptFormat("chat", 200, {0: "tasks", 1: "Wissen, 知识"})


@pytest.fixture
def adapters(tmp_path):
    for name, saved in (("chat", CHAT), ("release", PromptFormat()), ("old", None)):
        (tmp_path / name).mkdir()
        if saved is not None:
            save_prompt_format(tmp_path / name, saved)
    return tmp_path


@pytest.mark.parametrize(
    ("requested", "names", "template", "warned"),
    [
        (None, ["old", "chat"], "chat", False),
        (None, ["old"], "release", False),
        ("chat", ["old", "chat"], "chat", False),
        ("release", ["chat"], "release", True),
        ("chat", ["chat", "release"], "chat", True),
    ],
)
def test_the_request_wins_with_a_warning(adapters, caplog, requested, names, template, warned):
    chosen = choose_prompt_format(requested, [adapters / name for name in names])
    expected = CHAT if "chat" in names else PromptFormat()
    assert chosen == PromptFormat(template, expected.max_seq_length, expected.type_names)
    assert len(caplog.records) == warned


def test_adapters_of_different_templates_need_a_request(adapters):
    with pytest.raises(ValueError, match=r"chat.*release.*--template"):
        choose_prompt_format(None, [adapters / "chat", adapters / "release"])


@pytest.mark.parametrize("text", ["{", "[]", '{"template": "alpaca", "max_seq_length": 9}'])
def test_a_damaged_file_is_named(adapters, text):
    (adapters / "chat" / PROMPT_FILE).write_text(text)
    with pytest.raises(ValueError, match=PROMPT_FILE):
        read_prompt_format(adapters / "chat")
