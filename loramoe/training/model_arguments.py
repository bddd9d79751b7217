"""The flags of `train.py` about the base model and the adapter on it. Defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from loramoe.utils import comma_list, require


@dataclass
class ModelArguments:
    """The base model and the LoRAMoE adapter on it."""

    model_name_or_path: str = field(metadata={"help": "Base model: a folder, or a name on the Hugging Face hub."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer. Default: the base model's."})
    peft_path: str | None = field(
        default=None,
        metadata={
            "help": "Adapter to continue from, or to evaluate; its own config then replaces the lora_* and blc_* "
            "flags, trainable, modules_to_save and expert_types."
        },
    )
    trainable: str | None = field(
        default=None, metadata={"help": "Linears to adapt, comma-separated. Default: the architecture's MLP linears."}
    )
    lora_rank: int = field(default=4, metadata={"help": "Rank of each expert."})
    lora_alpha: float = field(default=32, metadata={"help": "The experts' sum is scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout probability on the experts' input."})
    lora_nums: int = field(default=8, metadata={"help": "Number of experts beside each linear."})
    blc_alpha: float = field(
        default=0.1,
        metadata={"help": "Importance counts 1 + blc_alpha where expert and sample have one type, else 1 - blc_alpha."},
    )
    blc_weight: float = field(
        default=0.1, metadata={"help": "Weight of the balancing constraint in the loss; 0 is off."}
    )
    expert_types: str | None = field(
        default=None,
        metadata={"help": "Type of each expert, comma-separated. Default: 1 for the first half, 0 for the rest."},
    )
    blc_target: Literal["paper", "match"] = field(
        default="match",
        metadata={
            "help": "match: the experts of a sample's type get more gate weight; paper: less, as in the original code."
        },
    )
    blc_importance: Literal["mean", "sum"] = field(
        default="mean",
        metadata={"help": "Importance of an expert for a sample: mean or sum of its gates over the sample's tokens."},
    )
    modules_to_save: str | None = field(
        default=None, metadata={"help": "Modules to train and save whole beside the adapter, comma-separated."}
    )
    load_in_kbits: int | None = field(
        default=None, metadata={"help": "Load the base model in 4 or 8 bits (needs bitsandbytes); 16: in torch_dtype."}
    )
    double_quant: bool = field(default=True, metadata={"help": "4 bits: quantise the quantisation constants too."})
    quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata={"help": "4 bits: number format."})
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={
            "help": "Dtype of the base model, and of the arithmetic on a 4-bit one; auto: as it was saved (in 4 bits "
            "bfloat16 with --bf16)."
        },
    )
    flash_attn: bool = field(
        default=False, metadata={"help": "Use FlashAttention-2 (needs a GPU and the flash-attn package)."}
    )

    def __post_init__(self) -> None:
        if self.load_in_kbits not in (None, 4, 8, 16):
            raise ValueError(
                f"load_in_kbits must be 4, 8 or 16; got load_in_kbits={self.load_in_kbits}. Leave it out for 16."
            )
        if self.load_in_kbits in (4, 8):
            require("bitsandbytes", f"load_in_kbits={self.load_in_kbits}")
        if self.flash_attn:
            require("flash_attn", "flash_attn", package="flash-attn --no-build-isolation")
            _require_gpu()
        self.expert_type_list()

    def expert_type_list(self) -> list[int] | None:
        """`expert_types` as integers, or None where it is unset."""
        types = comma_list(self.expert_types)
        if types is None:
            return None
        try:
            return [int(item) for item in types]
        except ValueError:
            raise ValueError(
                "expert_types must be comma-separated integers, one for each expert; "
                f"got expert_types={self.expert_types!r}. Write for example --expert_types 1,1,0,0 with --lora_nums 4."
            ) from None


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "flash_attn needs a GPU, and PyTorch sees none here. Leave it out: PyTorch's own attention is used."
        )
