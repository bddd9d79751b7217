"""One of two processes in which transformers' Trainer, and nothing of loramoe.training, trains under ZeRO-3 on a CPU.

    torchrun --nproc_per_node 2 zero3_worker.py BASE OUT CONFIG

The model generates when the training begins, without DeepSpeed's engine around it: the weights of the experts have to
be gathered there too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

import loramoe  # noqa: F401
from loramoe.data import SftCollator
from tests.plain_loop import OrderedTrainer, make_config, make_rows, settings


class Generate(TrainerCallback):
    """Generates before the first step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.eval().generate(input_ids=torch.arange(3, 9).view(1, 6), max_new_tokens=2, synced_gpus=True)
        model.train()


def main() -> None:
    base, out, config = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    deepspeed.init_distributed(dist_backend="gloo")
    args = TrainingArguments(**settings(out / "run", deepspeed=config))
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), make_config())
    rows = Dataset.from_list(make_rows())
    trainer = OrderedTrainer(model, args, train_dataset=rows, data_collator=SftCollator(0), callbacks=[Generate()])
    trainer.train()
    if dist.get_rank() == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        (out / "losses.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
