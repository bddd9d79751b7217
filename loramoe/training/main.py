"""The command `loramoe train`: errors that users can fix are printed in one line, and the exit code says what to do."""

from __future__ import annotations

import sys
import traceback

import torch

from loramoe.data import DatasetError
from loramoe.training.callbacks import NonFiniteError, StoppedError
from loramoe.training.distributed import exit_process, exit_with_launcher
from loramoe.training.parser import parse
from loramoe.training.run import run_sft
from loramoe.utils import FAILED, TRY_AGAIN, USER_ERRORS

OUT_OF_MEMORY = (
    "out of memory ({error}). Try a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, "
    "--gradient_checkpointing true, or a shorter --max_seq_length; then --load_in_kbits 4, or engine=zero3."
)


def main(argv: list[str] | None = None) -> int:
    """Parses flags and runs.

    Args:
        argv: The flags. Default: the command line.

    Returns:
        0 after a finished run, 75 after one that a signal stopped and that has saved, 1 after any other.
    """
    try:
        arguments = parse(argv)
    except (ValueError, FileNotFoundError) as error:
        return _print_error(error, FAILED)
    exit_with_launcher()
    code = _run(arguments)
    exit_process(code)
    return code


def _run(arguments: object) -> int:
    try:
        run_sft(arguments)  # type: ignore[arg-type]
    except StoppedError as stop:
        return _print_error(stop, TRY_AGAIN)
    except (*USER_ERRORS, DatasetError, NonFiniteError) as error:
        return _print_error(error, FAILED)
    except torch.OutOfMemoryError as error:
        return _print_error(OUT_OF_MEMORY.format(error=" ".join(str(error).split())[:200]), FAILED)
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _print_error(error: object, code: int) -> int:
    print(f"loramoe train: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
