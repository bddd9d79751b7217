"""Fine-tunes a causal language model with LoRAMoE: the same as `loramoe train`.

    python train.py --base_model data/tiny_llama --dataset_dir data/tiny_data/train --output_dir output/first
    python train.py flags.yaml --learning_rate 1e-3
    torchrun --nproc_per_node 8 train.py …

`run_loramoe.sh` calls it with every hyper-parameter in one place. `python train.py --help` lists all flags.
"""

from __future__ import annotations

import sys

from loramoe.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
