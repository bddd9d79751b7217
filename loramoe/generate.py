"""Answers with a trained adapter, token by token.

    python -m loramoe.generate --adapter DIR --prompt "Which city does Mila Rodak come from?"
    python -m loramoe.generate --adapter DIR < questions.txt        # one prompt a line

The prompt is laid out by the template that is saved with the adapter, unless `--template` names another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from transformers import TextStreamer

from loramoe.data import TEMPLATES, TemplateError, choose_prompt_format, get_template
from loramoe.decoding import decode
from loramoe.loading import add_model_flags, load_from_flags
from loramoe.utils import not_negative, positive


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

    Raises:
        ValueError: If the tokenizer does not suit the template.
    """
    layout = get_template(template, tokenizer)
    ids = layout.prompt_ids(instruction, input)
    return decode(model, tokenizer, [ids], max_new_tokens, temperature, streamer, layout.end_ids)[0].strip()


def _prompts(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    if sys.stdin.isatty():
        print("One prompt a line; end with Ctrl-D.", file=sys.stderr)
    yield from (line.strip() for line in sys.stdin if line.strip())


def main(argv: list[str] | None = None) -> None:
    """Answers the prompt of the command line, or every line of the standard input."""
    parser = argparse.ArgumentParser(prog="loramoe generate", description="Answer with a trained adapter.")
    add_model_flags(parser)
    parser.add_argument("--prompt", help="instruction or question; default: one from each line of the standard input")
    parser.add_argument("--input", default="", help="the text that the instruction is about")
    parser.add_argument("--max_new_tokens", type=positive, default=256, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0: greedy; above: sample")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="prompt layout; default: that of the training")
    arguments = parser.parse_args(argv)
    try:
        template = choose_prompt_format(arguments.template, [arguments.adapter] if arguments.adapter else []).template
        model, tokenizer = load_from_flags(arguments)
        get_template(template, tokenizer)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    try:
        for prompt in _prompts(arguments.prompt):
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            length, temperature = arguments.max_new_tokens, arguments.temperature
            answer(model, tokenizer, prompt, arguments.input, template, length, temperature, streamer)
    except TemplateError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
