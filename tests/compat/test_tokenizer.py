"""What is saved can be loaded by every supported version."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from loramoe.compat.tokenizer import save_tokenizer


def test_a_saved_tokenizer_names_a_class_that_every_version_has(tiny_task, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("w1 w2").input_ids == tokenizer("w1 w2").input_ids == [1, 5, 6]
    assert again.eos_token == "</s>"


def test_special_tokens_without_a_name_come_back_as_such(tiny_task, tmp_path: Path):
    """5.x calls them extra_special_tokens, which 4.x takes for a mapping of names."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<user>", "<assistant>"]
    assert not config.get("extra_special_tokens")  # 4.x writes an empty mapping
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again("w1 <user>").input_ids == tokenizer("w1 <user>").input_ids == [1, 5, 64]
    assert again.decode([5, 64, 65], skip_special_tokens=True) == "w1"
