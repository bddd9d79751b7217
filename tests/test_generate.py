"""The command that answers: streaming, from the prompt or from lines, with the template of the training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe import LoraMoeConfig
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import PromptFormat, save_prompt_format
from loramoe.generate import answer, main
from loramoe.loading import load


@pytest.fixture
def adapter(tiny_task, tmp_path: Path) -> Path:
    """An adapter that changes the base model's answers, with a tokenizer beside it."""
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    config = LoraMoeConfig(lora_nums=2, lora_alpha=320, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path)
    save_tokenizer(AutoTokenizer.from_pretrained(tiny_task.base), tmp_path)
    return tmp_path


def greedy(model, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
        if ids[-1] == 2:
            break
    return ids


def test_the_answer_is_greedy_and_the_prompt_is_that_of_training(adapter: Path):
    model, tokenizer = load(None, str(adapter))
    prompt = [1, *tokenizer.convert_tokens_to_ids(["w1", "w2", "w3"]), 2]  # <s> instruction input </s>
    expected = tokenizer.decode(greedy(model, prompt, 5)[len(prompt) :], skip_special_tokens=True).strip()
    assert answer(model, tokenizer, "w1 w2", "w3", max_new_tokens=5) == expected
    with model.disable_adapter():
        assert greedy(model, prompt, 5) != greedy(load(None, str(adapter))[0], prompt, 5)


def test_the_prompt_of_the_command_line_is_answered(adapter: Path, capsys: pytest.CaptureFixture[str]):
    main(["--adapter", str(adapter), "--prompt", "w1 w2", "--max_new_tokens", "5"])
    model, tokenizer = load(None, str(adapter))
    assert capsys.readouterr().out.strip() == answer(model, tokenizer, "w1 w2", max_new_tokens=5)


def test_every_line_is_answered(adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("w1 w2\n\nw3\n"))
    main(["--adapter", str(adapter), "--max_new_tokens", "4"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_layout_is_that_of_the_training(adapter: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ raise_exception('Not that.') if m.content == 'w3' }}{{ m.content }} w9 {% endfor %}"
    )
    tokenizer.save_pretrained(adapter)
    save_prompt_format(adapter, PromptFormat("chat"))
    main(["--adapter", str(adapter), "--prompt", "w1 w2", "--max_new_tokens", "5"])
    model, tokenizer = load(None, str(adapter))
    said = {name: answer(model, tokenizer, "w1 w2", template=name, max_new_tokens=5) for name in ("chat", "release")}
    assert capsys.readouterr().out.strip() == said["chat"] != said["release"]
    with pytest.raises(SystemExit):
        main(["--adapter", str(adapter), "--prompt", "w3"])
    assert "Not that." in capsys.readouterr().err.splitlines()[-1]


def test_sampling_draws_and_greedy_does_not(adapter: Path):
    model, tokenizer = load(None, str(adapter))
    torch.manual_seed(0)
    sampled = {answer(model, tokenizer, "w1", max_new_tokens=8, temperature=5.0) for _ in range(5)}
    assert len(sampled) > 1
    assert len({answer(model, tokenizer, "w1", max_new_tokens=8) for _ in range(2)}) == 1


def test_the_base_model_can_be_named(tiny_task, adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(adapter / "moved")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match=r"no base model could be loaded from .*moved.*Set --base_model"):
        load(None, str(adapter))
    assert load(str(tiny_task.base), str(adapter))[0].active_adapter == "default"


def test_a_base_model_that_is_there_and_cannot_be_loaded_says_why(tiny_task, tmp_path: Path):
    (tmp_path / "config.json").write_bytes((tiny_task.base / "config.json").read_bytes())
    with pytest.raises(
        FileNotFoundError, match=r"no base model could be loaded from [^:]*: .*no file named .*safetensors"
    ):
        load(str(tmp_path), None)


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*: adapter_config.json is not there"):
        load(None, str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no model to load. Set --adapter DIR"):
        load(None, None)
    with pytest.raises(SystemExit):
        main(["--adapter", str(tmp_path), "--prompt", "w1"])
    assert "no adapter at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max_new_tokens=0", "argument --max_new_tokens: expected a whole number of at least 1, got '0'. Raise it."),
        ("--temperature=-1", "argument --temperature: expected a number of at least 0, got '-1'. Correct it."),
        ("--temperature=nan", "argument --temperature: expected a number of at least 0, got 'nan'. Correct it."),
    ],
)
def test_numbers_that_nothing_can_be_made_of(capsys: pytest.CaptureFixture[str], flag: str, message: str):
    with pytest.raises(SystemExit):
        main(["--adapter", "not looked for", "--prompt", "w1", flag])
    assert message in capsys.readouterr().err
