"""What is saved can be loaded by every supported version."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from loramoe.training.versions import save_tokenizer


def test_a_saved_tokenizer_names_a_class_that_every_version_has(tiny_task, tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("w1 w2").input_ids == tokenizer("w1 w2").input_ids == [1, 5, 6]
    assert again.eos_token == "</s>"
