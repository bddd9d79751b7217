"""A callback of one's own: here it prints, at every log, the layer whose constraint is largest.

PYTHONPATH=. python examples/custom_callback.py --base_model data/tiny_llama --dataset_dir data/tiny_data/train \
        --max_seq_length 128 --max_steps 20 --output_dir output/custom_callback
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback

from loramoe import last_balance
from loramoe.training import parse, run_sft


class LargestConstraint(TrainerCallback):
    """Prints the layer whose constraint was largest in the last micro-batch."""

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Runs when something is logged."""
        balance = last_balance(model)
        if balance is not None:
            value, place = balance.constraint_L.max(dim=0)
            print(f"step {state.global_step}: largest constraint {value.item():.4f} in {balance.layers[place.item()]}")


if __name__ == "__main__":
    run_sft(parse(sys.argv[1:]), callbacks=[LargestConstraint()])
