"""Fine-tunes a causal language model with LoRAMoE.

    python train.py --model_name_or_path data/tiny_llama --dataset_dir data/tiny_data/train --output_dir output/first
    python train.py flags.yaml --learning_rate 1e-3
    torchrun --nproc_per_node 8 train.py …

`run_loramoe.sh` calls it with every hyper-parameter in one place. `python train.py --help` lists all flags.
"""

from __future__ import annotations

import sys

from accelerate import PartialState

from loramoe.data import DatasetError
from loramoe.training.arguments import parse
from loramoe.training.errors import UsageError
from loramoe.training.processes import leave
from loramoe.training.run import run


def main() -> None:
    """Parses the command line and runs; what the user can mend is told in one line, without a traceback."""
    try:
        arguments = parse()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    try:
        run(arguments)
    except (UsageError, DatasetError, FileExistsError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    finally:
        PartialState().destroy_process_group()
    leave()


if __name__ == "__main__":
    main()
