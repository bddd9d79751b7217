"""Tokens given as flags are used, and kept nowhere.

transformers writes all arguments into `training_args.bin` beside every checkpoint, and wandb records the command line.
So a token leaves both as soon as it is read, for the environment, which is where huggingface_hub looks for one and
which no tracker records.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

HIDDEN = "hidden"
_ENDING = "_token"


def keep_secrets(args: Any, argv: list[str], environment: MutableMapping[str, str]) -> None:
    """Moves the hub's token from the arguments and the command line to `HF_TOKEN`, in place.

    Args:
        args: The training's arguments, with `hub_token` and, before transformers 5, `push_to_hub_token`.
        argv: The command line, `sys.argv`.
        environment: The environment, `os.environ`.
    """
    for name in [name for name in vars(args) if name.endswith(_ENDING)]:
        token = getattr(args, name)
        if token is not None:
            environment["HF_TOKEN"] = token
            setattr(args, name, None)
    argv[:] = without_secrets(argv)


def without_secrets(argv: list[str]) -> list[str]:
    """A command line whose flags of tokens have lost their values.

    Args:
        argv: Words of a command line.

    Returns:
        As many words; `hidden` stands for each token.
    """
    shown: list[str] = []
    for index, word in enumerate(argv):
        name, equals, _ = word.partition("=")
        if index and _is_secret(argv[index - 1]) and not word.startswith("--"):
            shown.append(HIDDEN)
        elif equals and _is_secret(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
    return shown


def _is_secret(flag: str) -> bool:
    return flag.startswith("--") and flag.replace("-", "_").endswith(_ENDING)
