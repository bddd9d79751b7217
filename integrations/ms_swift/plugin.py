"""LoRAMoE in ms-swift: `--external_plugins integrations/ms_swift/plugin.py --tuner_type loramoe`.

Swift asks `tuners_map` for tuners that it does not know. Its command line takes no flags of a plugin's, so what only
LoRAMoE has comes through `--model_kwargs '{"lora_nums": 8, "blc_weight": 0.1}'`; rank, alpha, dropout and target
modules are swift's flags, with swift's defaults. Task types reach the model as `--remove_unused_columns false` lets
them: as a list, under the column's name. Nothing of swift is patched.
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

COLUMN = "task_type"
OWN = ("lora_nums", "blc_alpha", "blc_weight", "blc_target", "blc_importance", "expert_types")

# What swift's flags must be for the constraint to be in the loss. With others it drops what it knows of each sample, or
# it computes the loss without the model's.
KEEPS_CONSTRAINT = {
    "remove_unused_columns": False,
    "packing": False,
    "padding_free": False,
    "sequence_parallel_size": 1,
    "enable_dft_loss": False,
    "enable_channel_loss": False,
    "loss_type": None,
}


class LoraMoeTuner(PeftTuner):  # type: ignore[misc]  # swift is not typed
    """What swift calls to make, save and load an adapter; saving is that of all PEFT adapters."""

    @staticmethod
    def prepare_model(args: Any, model: nn.Module) -> nn.Module:
        """Puts a new adapter into a model.

        Args:
            args: Swift's arguments.
            model: The base model.

        Returns:
            The adapted model.

        Raises:
            ValueError: If the arguments contradict each other, or would lose the constraint.
        """
        config = adapter_config(args, model)
        if config.blc_weight > 0:
            check_constraint_is_kept(args)
        return with_task_types(get_peft_model(model, config))

    @staticmethod
    def from_pretrained(model: nn.Module, model_id: str, **kwargs: Any) -> nn.Module:
        """Loads an adapter, to use it or to go on training it.

        Args:
            model: The base model.
            model_id: Folder of the adapter.
            kwargs: As for PeftModel.from_pretrained.

        Returns:
            The adapted model.
        """
        return with_task_types(PeftModel.from_pretrained(model, model_id, **kwargs))


def adapter_config(args: Any, model: nn.Module) -> LoraMoeConfig:
    """The adapter that swift's arguments describe.

    Args:
        args: Swift's arguments.
        model: The base model, whose linears `all-linear` stands for.

    Returns:
        Its LoraMoeConfig.

    Raises:
        ValueError: If they ask for what LoRAMoE does not have, or for values that contradict each other.
    """
    foreign = [name for name in ("use_dora", "target_parameters") if getattr(args, name)]
    if args.lora_bias != "none":
        foreign.append("lora_bias")
    if foreign:
        raise ValueError(
            f"--tuner_type loramoe does not know --{', --'.join(foreign)}. Leave it out, or set --tuner_type lora."
        )
    return LoraMoeConfig(
        task_type="CAUSAL_LM",
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.target_regex or get_target_modules(args, model),
        modules_to_save=get_modules_to_save(args, model) or None,
        use_rslora=args.use_rslora,
        init_lora_weights=args.init_weights,
        **{name: args.model_kwargs[name] for name in OWN if name in args.model_kwargs},
    )


def check_constraint_is_kept(args: Any) -> None:
    """Refuses flags with which the loss would silently have no constraint.

    Args:
        args: Swift's arguments.

    Raises:
        ValueError: If there are such; the message names them.
    """
    lost = [f"--{name} {getattr(args, name)}" for name, kept in KEEPS_CONSTRAINT.items() if getattr(args, name) != kept]
    binary = args.is_binary_loss_scale
    if not (get_loss_scale(args.loss_scale).is_binary_loss_scale if binary is None else binary):
        lost.append(f"--loss_scale {args.loss_scale}")
    if lost:
        raise ValueError(
            f"with {' '.join(lost)} swift drops the task types or computes the loss without the model's, and the "
            "balancing constraint would be lost. Set --remove_unused_columns false and leave the others out, or set "
            '"blc_weight": 0 in --model_kwargs.'
        )


def with_task_types(model: nn.Module) -> nn.Module:
    """Has a model take the column that swift hands it as a list.

    Args:
        model: The adapted model.

    Returns:
        The same model, which is now given `task_types` [B] where it was called with `task_type`.
    """

    def before(
        model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if COLUMN not in kwargs:
            return None
        rest = {name: value for name, value in kwargs.items() if name != COLUMN}
        return args, {**rest, "task_types": torch.tensor(kwargs[COLUMN])}

    model.register_forward_pre_hook(before, with_kwargs=True)
    return model


tuners_map["loramoe"] = LoraMoeTuner
