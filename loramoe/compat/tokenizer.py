"""Saved tokenizers that every supported version of transformers can load."""

import json
from pathlib import Path
from typing import Any


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer with the class and the names of special tokens that transformers 4.x and 5.x both know."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):  # a mapping in 4.x
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
