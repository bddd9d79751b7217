"""The flags about the training: those of transformers' TrainingArguments, and what LoRAMoE adds to them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from loramoe.training.distributed import check_engine
from loramoe.utils import comma_list, require

LOWER_IS_BETTER = ("loss", "perplexity", "blc", "cov")
HIGHER_IS_BETTER = ("share",)
_THEIRS = {field.name for field in dataclasses.fields(TrainingArguments)}


@dataclass
class TrainArguments(TrainingArguments):  # type: ignore[misc]  # transformers is not typed
    """Everything of transformers' TrainingArguments, with the paper's values as defaults."""

    if TYPE_CHECKING:  # fields of transformers, which is not typed
        hub_token: str | None
        gradient_accumulation_steps: int
        metric_for_best_model: str | None
        greater_is_better: bool | None
        warmup_steps: float
        gradient_checkpointing: bool | None
        gradient_checkpointing_kwargs: Any
        train_sampling_strategy: str

    # nargs and const, which the parser gives to plain bools alone, allow the flag without a value.
    do_train: bool | None = HfArg(
        default=None,
        help="Train. Default: both, or what the other flag leaves.",
        metadata={"nargs": "?", "const": True},
    )
    do_eval: bool | None = HfArg(
        default=None,
        help="Evaluate; alone: the adapter of --adapter or output_dir.",
        metadata={"nargs": "?", "const": True},
    )
    per_device_train_batch_size: int = HfArg(
        default=8, help="Samples of a process in one forward pass.", aliases=["--batch_size"]
    )
    global_batch_size: int | None = HfArg(
        default=None, help="Samples of a step, all processes together; sets gradient_accumulation_steps."
    )
    learning_rate: float = HfArg(default=2e-4, help="Peak learning rate.")
    router_learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of the routers. Default: learning_rate."
    )
    loraplus_lr_ratio: float | None = HfArg(default=None, help="LoRA+: the learning rate of B is this times that of A.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Shape of the learning rate over the steps.")
    warmup_ratio: float = HfArg(
        default=0.03, help="Share of the steps over which the learning rate rises; see warmup_steps."
    )
    eval_strategy: str = HfArg(
        default="no",
        help="When to evaluate: no, steps or epoch. There is always one evaluation at the end.",
        aliases=["--evaluation_strategy"],
    )
    eval_on_start: bool = HfArg(default=True, help="Evaluate before the first step too, for comparison.")
    early_stopping_patience: int | None = HfArg(
        default=None, help="Stop after so many evaluations without a better metric_for_best_model."
    )
    report_to: str | None = HfArg(default="none", help="Trackers, comma-separated: tensorboard, wandb, trackio, none.")
    overwrite_output_dir: bool = HfArg(default=False, help="Start anew where output_dir holds a run.")
    on_nonfinite: Literal["stop", "skip"] = HfArg(
        default="stop", help="A loss that is NaN or infinite: stop the run, or skip the batch and count it."
    )
    experts_page: bool = HfArg(default=True, help="Write a page on what each expert does, at the end.")
    group_by_length: bool = HfArg(
        default=False, help="Draw samples of similar length together, so that they need little padding."
    )
    dry_run: bool = HfArg(default=False, help="Do everything but load weights and train: print data, batch and memory.")
    remove_unused_columns: bool = HfArg(
        default=False, help="Must stay false: the constraint needs the column task_types."
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("output_dir, where the adapter goes, is not set. Set --output_dir FOLDER.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: it would drop task_types. Leave the flag out.")
        self.report_to = comma_list(self.report_to) if isinstance(self.report_to, str) else self.report_to  # type: ignore[assignment]
        self._choose_work()
        self._require_packages()
        check_engine(self)
        self._set_accumulation()
        self._set_best_metric()
        self._set_renamed()
        super().__post_init__()
        if self.n_gpu > 1:
            raise ValueError(
                f"one process must have one GPU; this one has {self.n_gpu}. Start torchrun --nproc_per_node "
                f"{self.n_gpu} train.py …, or set CUDA_VISIBLE_DEVICES=0."
            )
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that it has nothing to pin for
        # A token stays out of training_args.bin and of what trackers record; huggingface_hub reads it from here.
        token: str | None = self.hub_token
        if token:
            os.environ["HF_TOKEN"], self.hub_token = token, None
            sys.argv[:] = [word.replace(token, "hidden") for word in sys.argv]

    def _choose_work(self) -> None:
        train, evaluate = self.do_train, self.do_eval
        self.do_train = not evaluate if train is None else train
        self.do_eval = not train if evaluate is None else evaluate
        if not self.do_train and not self.do_eval:
            raise ValueError("do_train and do_eval are both false: there is nothing to do. Set one of them to true.")

    def _require_packages(self) -> None:
        if self.deepspeed:
            require("deepspeed", f"deepspeed={self.deepspeed}")
        if self.use_liger_kernel:
            require("liger_kernel", "use_liger_kernel=True", package="liger-kernel")
        for tracker in {"wandb", "trackio"} & set(self.report_to or ()):
            require(tracker, f"report_to={tracker}")

    def _set_accumulation(self) -> None:
        """Before TrainingArguments' own checks, in which DeepSpeed's configuration takes the values."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={getattr(self, name)}. Raise it.")
        if self.global_batch_size is None:
            return
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        at_once = self.per_device_train_batch_size * processes
        if self.global_batch_size % at_once or self.global_batch_size < at_once:
            raise ValueError(
                f"global_batch_size must be a multiple of {at_once}, which is per_device_train_batch_size="
                f"{self.per_device_train_batch_size} on {processes} processes; got {self.global_batch_size}. Change "
                "one of them."
            )
        self.gradient_accumulation_steps = self.global_batch_size // at_once

    def _set_best_metric(self) -> None:
        """The direction of each metric: transformers would take all but "…loss" for one that should rise."""
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        if not self.load_best_model_at_end and self.save_strategy != "best" and self.metric_for_best_model is None:
            return
        self.metric_for_best_model = name = self.metric_for_best_model or "loss"
        words = set(re.split(r"[_/]", name))
        if self.greater_is_better is None and words & {*LOWER_IS_BETTER, *HIGHER_IS_BETTER}:
            self.greater_is_better = not words & set(LOWER_IS_BETTER)
        if self.greater_is_better is None:
            raise ValueError(
                f"metric_for_best_model must be a metric of an evaluation ({', '.join(LOWER_IS_BETTER)}, …); got "
                f"{name!r}. For one of compute_metrics, say its direction with greater_is_better."
            )

    def _set_renamed(self) -> None:
        """Gives warm-up, checkpointing and grouping one meaning in every version of transformers."""
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(
                f"warmup_ratio must be in [0, 1); got {self.warmup_ratio}. For a number of steps set warmup_steps."
            )
        self.warmup_steps = self.warmup_steps or self.warmup_ratio  # below 1, transformers takes it for a share
        self.warmup_ratio = None  # type: ignore[assignment]  # transformers before 5.2 warns about it
        new = "activation_checkpointing" if "activation_checkpointing" in _THEIRS else "gradient_checkpointing"
        enabled = bool(getattr(self, new) or self.gradient_checkpointing)
        options: Any = getattr(self, f"{new}_kwargs") or self.gradient_checkpointing_kwargs or {}
        options = json.loads(options) if isinstance(options, str) else options
        self.gradient_checkpointing = self.gradient_checkpointing_kwargs = None  # the older names warn
        setattr(self, new, enabled)
        setattr(self, f"{new}_kwargs", {"use_reentrant": False, **options})
        if self.group_by_length and "train_sampling_strategy" in _THEIRS:
            if self.train_sampling_strategy not in ("random", "group_by_length"):
                raise ValueError(
                    f"group_by_length and train_sampling_strategy={self.train_sampling_strategy!r} exclude each "
                    "other. Set one of them."
                )
            self.train_sampling_strategy = "group_by_length"
