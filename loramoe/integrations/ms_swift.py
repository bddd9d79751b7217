"""Plug-in for ms-swift: `--external_plugins FILE --tuner_type loramoe`, FILE being the path of this module.

Rank, alpha, dropout and target modules are swift's flags. What only LoRAMoE has is set by
`--model_kwargs '{"lora_nums": 8, "blc_weight": 0.1}'`. Nothing of swift is patched.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from swift.loss_scale import get_loss_scale
from swift.pipelines.train.tuner import get_modules_to_save, get_target_modules
from swift.tuner_plugin import PeftTuner, tuners_map
from torch import nn

from loramoe import LoraMoeConfig

OWN = ("lora_nums", "blc_alpha", "blc_weight", "blc_target", "blc_importance", "expert_types")
# The values of swift's flags of LoRA that LoRAMoE supports.
SUPPORTED: dict[str, Any] = {"use_dora": False, "target_parameters": None, "lora_bias": "none"}
# The values of swift's flags with which samples keep their task type and the loss is the model's.
KEEPS_CONSTRAINT: dict[str, Any] = {"remove_unused_columns": False, "packing": False, "padding_free": False}
KEEPS_CONSTRAINT |= {"loss_type": None, "sequence_parallel_size": 1}
KEEPS_CONSTRAINT |= {"enable_dft_loss": False, "enable_channel_loss": False}


class LoraMoeTuner(PeftTuner):  # type: ignore[misc]  # swift is not typed
    """Makes and loads adapters; they are saved as all of PEFT's."""

    @staticmethod
    def prepare_model(args: Any, model: nn.Module) -> nn.Module:
        """Adds a new adapter to a model; ValueError if the constraint would not be in the loss."""
        config = adapter_config(args, model)
        if config.blc_weight > 0:
            check_constraint(args)
        return with_task_types(get_peft_model(model, config))

    @staticmethod
    def from_pretrained(model: nn.Module, model_id: str, **kwargs: Any) -> nn.Module:
        """Loads an adapter, for inference or more training."""
        return with_task_types(PeftModel.from_pretrained(model, model_id, **kwargs))


def adapter_config(args: Any, model: nn.Module) -> LoraMoeConfig:
    """Makes the adapter's configuration of swift's flags; ValueError for what LoRAMoE does not have."""
    given = {name: getattr(args, name) for name in SUPPORTED}
    foreign = [f"--{name} {value}" for name, value in given.items() if value not in (None, SUPPORTED[name])]
    foreign += [n for n in args.model_kwargs if n.startswith(("blc_", "lora_", "expert_")) and n not in OWN]
    if foreign:
        raise ValueError(f"--tuner_type loramoe does not support {', '.join(foreign)}. Leave it out.")
    return LoraMoeConfig(
        task_type="CAUSAL_LM",
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.target_regex or get_target_modules(args, model),
        modules_to_save=get_modules_to_save(args, model) or None,
        use_rslora=args.use_rslora,
        init_lora_weights=args.init_weights,
        **{name: value for name, value in args.model_kwargs.items() if name in OWN},
    )


def check_constraint(args: Any) -> None:
    """Refuses flags with which the constraint would not be in the loss; the ValueError names them."""
    values = {name: getattr(args, name) for name in KEEPS_CONSTRAINT}
    lost = [f"--{name} {value}" for name, value in values.items() if value != KEEPS_CONSTRAINT[name]]
    binary = args.is_binary_loss_scale
    if not (get_loss_scale(args.loss_scale).is_binary_loss_scale if binary is None else binary):
        lost.append(f"--loss_scale {args.loss_scale}")
    if lost:
        raise ValueError(
            f"the constraint would not be in the loss with {' '.join(lost)}. Set --remove_unused_columns false, leave "
            'the others out, or set "blc_weight": 0 in --model_kwargs.'
        )


def with_task_types(model: nn.Module) -> nn.Module:
    """Makes a model take the column `task_type`, which swift passes on as a list, as `task_types` [B]."""

    def rename(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "task_type" in kwargs:
            kwargs["task_types"] = torch.tensor(kwargs.pop("task_type"))
        return args, kwargs

    model.register_forward_pre_hook(rename, with_kwargs=True)
    return model


tuners_map["loramoe"] = LoraMoeTuner
