"""A conversation with a trained adapter, turn by turn.

    loramoe chat --adapter DIR [--system "You answer in one sentence."]

The template that is saved with the adapter lays out the turns. `/new` begins a new conversation; Ctrl-D ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from transformers import TextStreamer

from loramoe.data import TEMPLATES, Message, TemplateError, choose_prompt_format, get_template
from loramoe.decoding import decode
from loramoe.loading import add_model_flags, load_from_flags
from loramoe.utils import not_negative, positive


def converse(
    model: Any,
    tokenizer: Any,
    lines: Iterable[str],
    template: str,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
) -> list[Message]:
    """Answers each line with all turns before it in view.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lines: What the user says; `/new` begins a new conversation.
        template: "release" or "chat", as in training.
        system: A system prompt.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 is greedy; above, tokens are sampled.

    Returns:
        The turns of the last conversation.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    layout = get_template(template, tokenizer)
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    turns = list(first)
    for line in filter(None, (line.strip() for line in lines)):
        if line == "/new":
            turns = list(first)
            continue
        turns.append({"role": "user", "content": line})
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = layout.chat_ids(turns)
        answer = decode(model, tokenizer, [ids], max_new_tokens, temperature, streamer, layout.end_ids)[0].strip()
        turns.append({"role": "assistant", "content": answer})
    return turns


def _lines() -> Iterable[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def main(argv: list[str] | None = None) -> None:
    """Talks on the command line."""
    parser = argparse.ArgumentParser(prog="loramoe chat", description="Talk with a trained adapter.")
    add_model_flags(parser)
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--max_new_tokens", type=positive, default=512, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0: greedy; above: sample")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="prompt layout; default: that of the training")
    arguments = parser.parse_args(argv)
    try:
        model, tokenizer = load_from_flags(arguments)
        adapters = [arguments.adapter] if arguments.adapter else []
        template = choose_prompt_format(arguments.template, adapters).template
        converse(
            model,
            tokenizer,
            _lines(),
            template,
            arguments.system,
            arguments.max_new_tokens,
            arguments.temperature,
        )
    except (ValueError, FileNotFoundError, TemplateError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
