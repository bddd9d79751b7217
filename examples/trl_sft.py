"""Supervised fine-tuning with TRL's SFTTrainer: copy it and change what you like.

    PYTHONPATH=. python examples/trl_sft.py

LoRAMoE needs: its configuration; `task_types` among the columns of the data; `remove_unused_columns=False`, as TRL has
its own list of columns; `skip_prepare_dataset`; and a collator that keeps the column. `import loramoe` does the rest:
each of TRL's losses contains the constraint.
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from loramoe import LoraMoeConfig, last_balance
from loramoe.data import SftCollator, tokenise_dataset


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Trains a LoRAMoE adapter with TRL's SFTTrainer.")
    parser.add_argument("--base", default="data/tiny_llama", help="base model")
    parser.add_argument("--rows", default="data/tiny_data/train", help="folder of rows: docs/data.md")
    parser.add_argument("--output", default="output/trl_sft", help="where the adapter goes")
    parser.add_argument("--steps", type=int, default=50, help="steps of the optimizer")
    return parser.parse_args()


def main(args: argparse.Namespace) -> SFTTrainer:
    """Trains, saves the adapter, and returns the trainer."""
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    rows, _ = tokenise_dataset(args.rows, tokenizer, max_seq_length=128)
    settings = SFTConfig(
        output_dir=args.output,
        max_steps=args.steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-3,
        logging_steps=5,
        report_to="none",
        bf16=False,  # TRL's default is True; set it on a GPU
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(args.base),
        settings,
        train_dataset=rows,
        data_collator=SftCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=LoraMoeConfig(lora_nums=8, blc_weight=0.1, blc_alpha=0.1, task_type="CAUSAL_LM"),
    )
    trainer.train()
    print(f"constraint of the last micro-batch: {last_balance(trainer.model).constraint.item():.4f}")
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(arguments())
