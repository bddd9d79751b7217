"""A metric of one's own: here the share of answer tokens that greedy decoding would get right.

PYTHONPATH=. python examples/custom_metric.py --base_model data/tiny_llama --dataset_dir data/tiny_data/train \
        --max_seq_length 128 --max_steps 20 --max_eval_samples 50 --output_dir output/custom_metric
"""

from __future__ import annotations

import sys
from typing import Any

from loramoe.training import parse, run_sft


def token_accuracy(prediction: Any) -> dict[str, float]:
    """Share of the learnt tokens whose logit is the largest, given all tokens before."""
    logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    learnt = labels != -100
    return {"token_accuracy": float((logits.argmax(-1) == labels)[learnt].mean())}


if __name__ == "__main__":
    run_sft(parse(sys.argv[1:]), compute_metrics=token_accuracy)
