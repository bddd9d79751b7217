"""Answers of a trained adapter, token by token: to single prompts (`loramoe generate`) or in turns (`loramoe chat`).

    loramoe generate --adapter DIR --prompt "Which city does Mila Rodak come from?"
    loramoe generate --adapter DIR < questions.txt        # one prompt a line
    loramoe chat --adapter DIR --system "You answer in one sentence."

The template that is saved with the adapter lays prompts out, unless `--template` names another.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import TextStreamer

from loramoe.data import TEMPLATES, Message, PromptTemplate, choose_prompt_format, conversation, get_template
from loramoe.decoding import decode
from loramoe.loading import adapter_folder, add_model_flags, base_name, load_from_flags, load_tokenizer
from loramoe.utils import not_negative, positive


def answer(
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    turns: Sequence[Message],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    stream: bool = False,
) -> str:
    """Answers the last turn of a conversation; `stream` prints the answer while it grows.

    Raises:
        TemplateError: If the template cannot render the conversation.
        UsageError: If the conversation fills the model's positions.
    """
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    ids = template.chat_ids(turns)
    return decode(model, tokenizer, [ids], max_new_tokens, temperature, streamer, template.end_ids)[0].strip()


def _lines() -> Iterator[str]:
    with contextlib.suppress(EOFError):
        while True:
            if line := input("> " * sys.stdin.isatty()).strip():
                yield line


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"loramoe {command}", description="Answer with a trained adapter.")
    add_model_flags(parser)
    add = parser.add_argument
    add("--template", "--prompt_template", choices=TEMPLATES, help="prompt layout; default: that of the training")
    add("--prompt", help="instruction or question; default: each line of the standard input; in chat, /new begins anew")
    add("--input", default="", help="the text that the instruction is about")
    add("--system", help="system prompt")
    add("--max_new_tokens", type=positive, default=512, help="longest answer, in tokens")
    add("--temperature", type=not_negative, default=0.0, help="0: greedy; above: sample")
    return parser


def main(argv: list[str] | None = None, command: str = "generate") -> None:
    """Answers the prompt of the command line, or every line of the standard input; `chat` remembers the turns."""
    parser = _parser(command)
    flags = parser.parse_args(argv)
    first = [Message(role="system", content=flags.system)] if flags.system else []
    turns = list(first)
    try:
        adapters = [adapter_folder(flags.adapter)] if flags.adapter else []
        tokenizer = load_tokenizer(base_name(flags.base_model, adapters), adapters)
        template = get_template(choose_prompt_format(flags.template, adapters).template, tokenizer)
        model, _ = load_from_flags(flags)
        for line in [flags.prompt] if flags.prompt else _lines():
            if command == "generate" or line == "/new":
                turns = list(first)
            if command == "generate" or line != "/new":
                turns.append(conversation(line, flags.input, "")[0])
                text = answer(model, tokenizer, template, turns, flags.max_new_tokens, flags.temperature, stream=True)
                turns.append(Message(role="assistant", content=text))
    except (ValueError, FileNotFoundError) as error:  # a TemplateError or a UsageError is a ValueError
        parser.exit(1, f"{parser.prog}: {error}\n")


def chat(argv: list[str] | None = None) -> None:
    """Talks on the command line, with all turns in view."""
    main(argv, "chat")


if __name__ == "__main__":
    main()
