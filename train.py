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

from loramoe.data import DatasetError
from loramoe.training.arguments import parse
from loramoe.training.errors import SaveError, UsageError
from loramoe.training.exit_codes import FAILED, TRY_AGAIN
from loramoe.training.nonfinite import NonFiniteError
from loramoe.training.processes import end_with_launcher, leave
from loramoe.training.run import run
from loramoe.training.secrets import keep_secrets
from loramoe.training.signals import StoppedError

TOLD = (UsageError, DatasetError, FileExistsError, FileNotFoundError, PermissionError, SaveError, NonFiniteError)
"""What the user can mend: told in one line, without a traceback."""


def main() -> int:
    """Parses the command line and runs.

    Returns:
        0 after a finished run, 75 after one that was asked to stop and has saved, 1 after any other.
    """
    try:
        arguments = parse()
    except (ValueError, FileNotFoundError) as error:
        return _told(error, FAILED)
    keep_secrets(arguments[2], sys.argv, os.environ)
    end_with_launcher()
    try:
        run(arguments)
    except StoppedError as stop:
        return _told(stop, TRY_AGAIN)
    except TOLD as error:
        return _told(error, FAILED)
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _told(error: Exception, code: int) -> int:
    print(f"train.py: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    code = main()
    leave(code)
    sys.exit(code)
