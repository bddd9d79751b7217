"""Writes a new, untrained LoRAMoE adapter, for tools that can go on training an adapter but cannot make this one.

    python integrations/llamafactory/new_adapter.py --model_name_or_path data/tiny_llama --lora_nums 8 --output new

The flags are those of `train.py` about the adapter. Its experts add nothing yet (B is zero), so the first step of the
tool that goes on with it is the first step of the training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser

from loramoe.training.arguments import ModelArguments
from loramoe.training.model import adapter_config


@dataclass
class NewAdapterArguments:
    """Where the adapter goes."""

    output: str = field(metadata={"help": "Folder of the new adapter."})
    seed: int = field(default=42, metadata={"help": "Seed of the weights that do not start at zero."})


def write(adapter: ModelArguments, arguments: NewAdapterArguments) -> None:
    """Puts a new adapter on the base model and saves it.

    Args:
        adapter: The base model and the adapter's hyper-parameters.
        arguments: Where the adapter goes.
    """
    base = AutoModelForCausalLM.from_pretrained(adapter.base_model)
    torch.manual_seed(arguments.seed)
    model = get_peft_model(base, adapter_config(adapter))
    model.save_pretrained(arguments.output)
    print(f"{arguments.output}: {model.get_nb_trainable_parameters()[0]:,} parameters to train")


if __name__ == "__main__":
    write(*HfArgumentParser([ModelArguments, NewAdapterArguments]).parse_args_into_dataclasses())
