"""The flags about the base model and the LoRAMoE adapter on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from loramoe.loading import BaseArguments
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import comma_list


@dataclass
class ModelArguments(BaseArguments):
    """The base model and the LoRAMoE adapter on it."""

    adapter: str | None = HfArg(
        default=None,
        help="Adapter to continue from, or to evaluate; its own configuration replaces the adapter's flags.",
        aliases=["--peft_path"],
    )
    trainable: str | None = HfArg(
        default=None,
        help="Linear layers to adapt: names, comma-separated, 'all-linear', or a regular expression. "
        "Default: the linear layers of the MLP.",
    )
    lora_rank: int = HfArg(default=4, help="Rank of each expert.")
    lora_alpha: float = HfArg(default=32, help="The experts' sum is scaled by lora_alpha / lora_rank.")
    lora_dropout: float = HfArg(default=0.05, help="Dropout probability on the experts' input.")
    lora_nums: int = HfArg(default=8, help="Number of experts of each adapted linear layer.")
    blc_alpha: float = HfArg(
        default=0.1,
        help="Importance counts 1 + blc_alpha where expert and sample have one type, else 1 - blc_alpha.",
    )
    blc_weight: float = HfArg(default=0.1, help="Weight of the balancing constraint in the loss; 0 is off.")
    expert_types: str | None = HfArg(
        default=None, help="Type of each expert, comma-separated. Default: 1 for the first half, 0 for the rest."
    )
    blc_target: Literal["paper", "match"] = HfArg(
        default="match", help="match: the experts of a sample's type get more gate weight; paper: less."
    )
    blc_importance: Literal["mean", "sum"] = HfArg(
        default="mean", help="Importance of an expert: mean or sum of its gates over a sample's tokens."
    )
    modules_to_save: str | None = HfArg(
        default=None, help="Modules to train and save whole beside the adapter, comma-separated."
    )

    def adapter_config(self) -> LoraMoeConfig:
        """The configuration of a new adapter.

        Raises:
            ValueError: If a flag cannot be used.
        """
        types = comma_list(self.expert_types)
        if types and not all(re.fullmatch(r"-?\d+", item) for item in types):
            raise ValueError(
                f"expert_types must be comma-separated integers, one per expert; got {self.expert_types!r}. "
                "Write for example --expert_types 1,1,0,0 with --lora_nums 4."
            )
        return LoraMoeConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            lora_nums=self.lora_nums,
            blc_alpha=self.blc_alpha,
            blc_weight=self.blc_weight,
            expert_types=None if types is None else [int(item) for item in types],
            blc_target=self.blc_target,
            blc_importance=self.blc_importance,
            target_modules=_target_modules(self.trainable),
            modules_to_save=comma_list(self.modules_to_save),
        )


def _target_modules(text: str | None) -> str | list[str] | None:
    names = comma_list(text)
    if text and (names == ["all-linear"] or not re.fullmatch(r"[\w.,\s-]*", text)):
        return text.strip()  # a regular expression, as LoraMoeConfig takes one
    return names
