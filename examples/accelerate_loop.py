"""A training loop of one's own, with accelerate: copy it and change what you like.

    PYTHONPATH=. accelerate launch --num_processes 1 examples/accelerate_loop.py
    PYTHONPATH=. torchrun --standalone --nproc_per_node 2 examples/accelerate_loop.py --accumulation 1

Both lines do the same (on CPUs after `export ACCELERATE_USE_CPU=true`): steps of 2 micro-batches, one after the other
or one in each process. What makes them agree is `num_items_in_batch`, the label tokens of the whole step: the loss of
each micro-batch, and the constraint in it, then counts by its share of them, and the shares of a step add up to 1.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe import LoraMoeConfig, last_balance
from loramoe.data import SftCollator, tokenise_dataset
from loramoe.training.distributed import exit_process


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Trains a LoRAMoE adapter in a loop of its own.")
    parser.add_argument("--base", default="data/tiny_llama", help="base model")
    parser.add_argument("--rows", default="data/tiny_data/train", help="folder of rows: docs/data.md")
    parser.add_argument("--output", default="output/accelerate_loop", help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=50, help="steps of the optimizer")
    parser.add_argument("--batch_size", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of a process in a step")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Trains, and saves the adapter."""
    accelerator = Accelerator()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    config = LoraMoeConfig(lora_nums=8, blc_weight=0.1, blc_alpha=0.1, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(args.base), config).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    rows, _ = tokenise_dataset(args.rows, tokenizer, max_seq_length=128)  # with the column task_types
    rows = rows.shuffle(seed=0, keep_in_memory=True)  # here, not by the loader: one order for any number of processes
    loader = DataLoader(rows, args.batch_size, drop_last=True, collate_fn=SftCollator(tokenizer.pad_token_id))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    batches = (batch for _ in range(args.steps * args.accumulation) for batch in loader)  # epoch after epoch
    for step in range(args.steps):
        micro_batches = list(islice(batches, args.accumulation))
        label_tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
        label_tokens = accelerator.reduce(label_tokens, "sum")
        step_loss = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(micro_batches, start=1):
            last = number == len(micro_batches)
            with nullcontext() if last else accelerator.no_sync(model):
                loss = model(**batch, num_items_in_batch=label_tokens).loss  # the constraint is in it
                # A sum over processes, of which DDP takes the mean.
                accelerator.backward(loss * accelerator.num_processes)
            step_loss += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        step_loss = accelerator.reduce(step_loss, "sum").item()
        constraint = last_balance(model).constraint.item()
        accelerator.print(f"step {step + 1}: loss {step_loss:.4f}, constraint of its last micro-batch {constraint:.4f}")

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output)
        print(f"The adapter is in {args.output}.")
    exit_process()  # ends each of several processes at once: taken apart, DDP over gloo may wait for ever (torch 2.13)


if __name__ == "__main__":
    main(arguments())
