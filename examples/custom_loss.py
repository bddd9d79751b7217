"""Another loss: subclass the trainer. Here the loss of confident tokens counts less (focal loss, gamma = 1).

PYTHONPATH=. python examples/custom_loss.py --base_model data/tiny_llama --dataset_dir data/tiny_data/train \
        --max_seq_length 128 --max_steps 20 --output_dir output/custom_loss
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from loramoe import balance_loss
from loramoe.training import LoraMoeTrainer, parse, run_sft


class FocalTrainer(LoraMoeTrainer):
    """Weighs each token's loss by the probability that the model missed."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The constraint is added by hand, because the model computes no loss without labels."""
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        labels = inputs["labels"][:, 1:].flatten()
        logits = outputs.logits[:, :-1].flatten(0, 1).float()[labels != -100]
        nll = torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="none")
        loss = ((1 - torch.exp(-nll)) * nll).mean() + balance_loss(outputs, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


if __name__ == "__main__":
    run_sft(parse(sys.argv[1:]), trainer_class=FocalTrainer)
