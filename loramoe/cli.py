"""The console command `loramoe`: one subcommand for each thing that people do with an adapter.

Each subcommand is the `main` of a module, or the function that is named behind a colon, imported only when needed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

COMMANDS: Final = {
    "train": ("loramoe.training.run", "fine-tune a model"),
    "generate": ("loramoe.generate", "answer prompts with an adapter"),
    "chat": ("loramoe.generate:chat", "talk with an adapter"),
    "evaluate": ("loramoe.evaluate", "score adapters on samples with answers, side by side"),
    "report": ("loramoe.analysis.report", "report which expert serves which task type"),
    "export": (
        "loramoe.export.__main__",
        "write an adapter as plain LoRA, merged, stand-alone or original",
    ),
    "convert": ("loramoe.export.original", "convert from and to the original release's format"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: The subcommand and its flags. Default: the command line.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        asked = argv[:1] not in ([], ["--help"], ["-h"])
        lines = [
            f"loramoe: unknown command {argv[0]!r}."
            if asked
            else "usage: loramoe COMMAND …   (COMMAND --help lists its flags)"
        ]
        lines += [f"  {name:9} {summary}" for name, (_, summary) in COMMANDS.items()]
        print("\n".join(lines), file=sys.stderr if asked else sys.stdout)
        return 2 if asked else 0
    module, _, function = COMMANDS[argv[0]][0].partition(":")
    return int(getattr(importlib.import_module(module), function or "main")(argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
