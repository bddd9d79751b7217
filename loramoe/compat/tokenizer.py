"""Saved tokenizers that every supported version of transformers can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Saves a tokenizer so that every version can load it.

    5.x names a class that 4.x does not have, and lists unnamed special tokens under a name that is a mapping in 4.x.

    Args:
        tokenizer: The tokenizer.
        folder: Where it is saved.
    """
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")  # its name in 4.x; 5.x reads it too
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
