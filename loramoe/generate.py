"""Answers with a trained adapter, token by token.

    python -m loramoe.generate --adapter DIR --prompt "Which city does Mila Rodak come from?"
    python -m loramoe.generate --adapter DIR < questions.txt        # one prompt a line

The prompt is laid out as in training: with the release's template unless `--template chat` says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import loramoe  # noqa: F401  # registers the method with peft
from loramoe.data import TEMPLATES, get_template


def load(model: str | None, adapter: str | None) -> tuple[Any, Any]:
    """Loads a base model with an adapter on it, ready to generate, on the GPU if there is one.

    Args:
        model: Base model. Default: the one that the adapter was trained on.
        adapter: Folder of the adapter. Default: the base model alone.

    Returns:
        The model and its tokenizer; the adapter's own tokenizer if one was saved with it.

    Raises:
        FileNotFoundError: If the adapter's folder does not exist, or no base model can be loaded; says why.
        ValueError: If neither is given.
    """
    from peft import PeftConfig, PeftModel

    if adapter is None and model is None:
        raise ValueError("there is no model to load. Set --adapter DIR, --model NAME, or both.")
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter at {adapter}: adapter_config.json is not there. Correct the path.")
    if model is None:
        model = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    base = _load_base(model)
    has_tokenizer = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(adapter if has_tokenizer else model)
    whole = base if adapter is None else PeftModel.from_pretrained(base, adapter)
    return whole.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _load_base(model: str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"no base model could be loaded from {model!r} (looked in {Path.cwd()} and on the hub). "
            f"Set --model to where it is, or mend what is wrong there: {error}"
        ) from error


@torch.inference_mode()
def answer(
    model: Any,
    tokenizer: Any,
    instruction: str,
    input: str = "",
    template: str = "release",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    streamer: TextStreamer | None = None,
) -> str:
    """Answers one instruction.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        instruction: What to do, or the question.
        input: The text to do it with.
        template: "release" or "chat", as in training.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 is greedy; above, tokens are sampled.
        streamer: Shows the answer while it grows.

    Returns:
        The answer, without special tokens.
    """
    ids = get_template(template, tokenizer).prompt_ids(instruction, input)
    input_ids = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": temperature > 0, "temperature": temperature or None}
    if temperature == 0:
        sampling |= {"top_p": None, "top_k": None}
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        streamer=streamer,
        **sampling,
    )
    return str(tokenizer.decode(generated[0, len(ids) :], skip_special_tokens=True)).strip()


def _prompts(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    if sys.stdin.isatty():
        print("One prompt a line; end with Ctrl-D.", file=sys.stderr)
    yield from (line.strip() for line in sys.stdin if line.strip())


def main(argv: list[str] | None = None) -> None:
    """Answers the prompt of the command line, or every line of the standard input."""
    parser = argparse.ArgumentParser(prog="python -m loramoe.generate", description="Answer with a trained adapter.")
    parser.add_argument("--adapter", help="adapter folder; default: the base model alone")
    parser.add_argument("--model", help="base model; default: the one that the adapter was trained on")
    parser.add_argument("--prompt", help="instruction or question; default: one from each line of the standard input")
    parser.add_argument("--input", default="", help="the text that the instruction is about")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy; above: sample")
    parser.add_argument(
        "--template", choices=sorted(TEMPLATES), default="release", help="prompt layout of the training"
    )
    arguments = parser.parse_args(argv)
    try:
        model, tokenizer = load(arguments.model, arguments.adapter)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    for prompt in _prompts(arguments.prompt):
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer(
            model,
            tokenizer,
            prompt,
            arguments.input,
            arguments.template,
            arguments.max_new_tokens,
            arguments.temperature,
            streamer,
        )


if __name__ == "__main__":
    main()
