"""Fine-tunes a causal language model with LoRAMoE.

    python train.py --model_name_or_path data/tiny_llama --dataset_dir data/tiny_data/train --output_dir output/first
    python train.py flags.yaml --learning_rate 1e-3
    torchrun --nproc_per_node 8 train.py …

`run_loramoe.sh` calls it with every hyper-parameter in one place. `python train.py --help` lists all flags.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from loramoe.training.arguments import parse
from loramoe.training.callbacks import StoppedError
from loramoe.training.distributed import exit_process, exit_with_launcher
from loramoe.training.run import run
from loramoe.utils import FAILED, TRY_AGAIN, USER_ERRORS


def main() -> int:
    """Parses the command line and runs.

    Returns:
        0 after a finished run, 75 after one that was asked to stop and has saved, 1 after any other.
    """
    try:
        arguments = parse()
    except (ValueError, FileNotFoundError) as error:
        return _print_error(error, FAILED)
    _move_tokens(arguments[2])
    exit_with_launcher()
    try:
        run(arguments)
    except StoppedError as stop:
        return _print_error(stop, TRY_AGAIN)
    except USER_ERRORS as error:
        return _print_error(error, FAILED)
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _print_error(error: Exception, code: int) -> int:
    print(f"train.py: {error}", file=sys.stderr)
    return code


def _move_tokens(args: Any) -> None:
    """Trackers record the command line and the arguments; huggingface_hub reads the token from the environment."""
    for name in ("hub_token", "push_to_hub_token"):
        token = getattr(args, name, None)
        if token:
            os.environ["HF_TOKEN"] = token
            setattr(args, name, None)
            sys.argv[:] = [word.replace(token, "hidden") for word in sys.argv]


if __name__ == "__main__":
    code = main()
    exit_process(code)
    sys.exit(code)
