"""The flags of `loramoe train` in three groups: the model and its adapter, the data, the training.

Defaults are the paper's. Every field of transformers' TrainingArguments is a flag too. Names that differ from those of
earlier versions, or of other trainers, keep the other name as an alias.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from transformers import TrainingArguments

from loramoe.compat.arguments import set_checkpointing, set_grouping, set_warmup
from loramoe.data import DataConfig, DataSource, read_data_config
from loramoe.training.distributed import check_engine
from loramoe.training.model_arguments import ModelArguments
from loramoe.utils import comma_list, require

LOWER_IS_BETTER = ("loss", "perplexity", "blc", "cov")
HIGHER_IS_BETTER = ("share",)


@dataclass
class DataArguments:
    """The samples to train and to evaluate on."""

    datasets: str | None = field(
        default=None, metadata={"help": "YAML file of data sets with their task types and weights (docs/data.md)."}
    )
    dataset_dir: str | None = field(
        default=None,
        metadata={"help": "Folder, file or hub name of the data to train on.", "aliases": ["--train_file"]},
    )
    validation_file: str | None = field(default=None, metadata={"help": "Folder, file or hub name to evaluate on."})
    validation_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "Per cent of the training samples to evaluate on where there is no validation data; 0: none; "
            "between 0 and 1 a share. Default: 5."
        },
    )
    default_task_type: int | None = field(
        default=None, metadata={"help": "Task type of samples that have none of their own."}
    )
    max_eval_samples: int = field(
        default=1000, metadata={"help": "Most samples of each validation set, drawn at random; 0: all."}
    )
    template: Literal["release", "chat"] = field(
        default="release",
        metadata={
            "help": "release: instruction[\\ninput]</s>output</s>; chat: the tokenizer's chat template.",
            "aliases": ["--prompt_template"],
        },
    )
    max_seq_length: int = field(
        default=1024, metadata={"help": "Longest sample in tokens, prompt and answer together."}
    )
    packing: bool = field(
        default=False, metadata={"help": "Fill rows to max_seq_length with whole samples, kept apart, without padding."}
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Put the samples of a forward pass one after the other, without padding."}
    )
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Round the length of a padded batch up to a multiple of this."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and tokenise samples when they are needed; needs max_steps."}
    )
    preprocessing_num_workers: int = field(default=1, metadata={"help": "Processes that tokenise."})
    recall_file: str | None = field(
        default=None,
        metadata={"help": "JSON list of {prompt, answer}: facts to ask for before and after the training."},
    )

    def __post_init__(self) -> None:
        if bool(self.datasets) == bool(self.dataset_dir):
            raise ValueError(
                f"name the training data once; got datasets={self.datasets!r} and dataset_dir={self.dataset_dir!r}. "
                "Set --dataset_dir FOLDER_OR_FILE, or --datasets FILE.yaml."
            )
        if self.packing and self.padding_free:
            raise ValueError("packing is padding-free already. Set one of packing and padding_free.")
        percentage = self.split_percentage()
        if percentage and not 1 <= percentage <= 99:
            raise ValueError(
                "validation_split_percentage must be 0, from 1 to 99, or a share from 0.01 to below 1; got "
                f"validation_split_percentage={self.validation_split_percentage}. For 5 per cent, write 5 or 0.05."
            )

    def config(self) -> DataConfig:
        """The data sets that the flags name."""
        if self.datasets:
            text = self.datasets
            config = read_data_config(json.loads(text) if text.startswith("{") else text)
        else:
            source = DataSource(str(self.dataset_dir), default_task_type=self.default_task_type)
            config = DataConfig((source,))
        if self.validation_file:
            source = DataSource(self.validation_file, default_task_type=self.default_task_type)
            config = DataConfig(config.datasets, (*config.validation, source), config.type_names)
        return config

    def split_percentage(self) -> float | None:
        """Per cent of the training samples to set aside where there is no validation data; None: not said."""
        share = self.validation_split_percentage
        if share is None:
            return None
        return share * 100 if share < 1 else share


@dataclass
class TrainArguments(TrainingArguments):  # type: ignore[misc]  # transformers is not typed
    """Everything of transformers' TrainingArguments, with the paper's values as defaults."""

    if TYPE_CHECKING:  # fields of transformers, which is not typed
        hub_token: str | None
        gradient_accumulation_steps: int
        metric_for_best_model: str | None
        greater_is_better: bool | None

    # nargs and const, which the parser gives to plain bools alone, allow the flag without a value.
    do_train: bool | None = field(
        default=None,
        metadata={"help": "Train. Default: both, or what the other flag leaves.", "nargs": "?", "const": True},
    )
    do_eval: bool | None = field(
        default=None,
        metadata={"help": "Evaluate; alone: the adapter of --adapter or output_dir.", "nargs": "?", "const": True},
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Samples of a process in one forward pass.", "aliases": ["--batch_size"]}
    )
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Samples of a step, all processes together; sets gradient_accumulation_steps."}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    router_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the routers. Default: learning_rate."}
    )
    loraplus_lr_ratio: float | None = field(
        default=None, metadata={"help": "LoRA+: the learning rate of B is this times that of A."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate over the steps."})
    warmup_ratio: float = field(
        default=0.03, metadata={"help": "Share of the steps over which the learning rate rises; see warmup_steps."}
    )
    eval_strategy: str = field(
        default="no",
        metadata={
            "help": "When to evaluate: no, steps or epoch. There is always one evaluation at the end.",
            "aliases": ["--evaluation_strategy"],
        },
    )
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before the first step too, for comparison."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    report_to: str | None = field(
        default="none", metadata={"help": "Trackers, comma-separated: tensorboard, wandb, trackio, none."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start anew where output_dir holds a run."})
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": "A loss that is NaN or infinite: stop the run, or skip the batch and count it."},
    )
    experts_page: bool = field(default=True, metadata={"help": "Write a page on what each expert does, at the end."})
    group_by_length: bool = field(
        default=False, metadata={"help": "Draw samples of similar length together, so that they need little padding."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Do everything but load weights and train: print data, batch and memory."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the constraint needs the column task_types."}
    )

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("output_dir is where the adapter goes, and is not set. Set --output_dir FOLDER.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: it would drop task_types. Leave the flag out.")
        self.report_to = comma_list(self.report_to) if isinstance(self.report_to, str) else self.report_to  # type: ignore[assignment]
        self.do_train, self.do_eval = _what_to_do(self.do_train, self.do_eval)
        self._require_packages()
        check_engine(self)
        self._set_accumulation()
        self._set_best_metric()
        set_warmup(self)
        set_checkpointing(self)
        set_grouping(self)
        try:
            super().__post_init__()
        except (TypeError, OSError) as error:
            raise ValueError(
                f"a flag cannot be used as it is: {error}. Correct accelerator_config or fsdp_config."
            ) from error
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

    def _require_packages(self) -> None:
        if self.deepspeed:
            require("deepspeed", f"deepspeed={self.deepspeed}")
        if self.use_liger_kernel:
            require("liger_kernel", "use_liger_kernel=True", package="liger-kernel")
        for tracker in set(self.report_to or ()) & {"wandb", "trackio", "tensorboard"}:
            if importlib.util.find_spec(tracker) is None and tracker != "tensorboard":
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
        if self.gradient_accumulation_steps > 1:
            raise ValueError("global_batch_size sets gradient_accumulation_steps. Set only one of them.")
        self.gradient_accumulation_steps = self.global_batch_size // at_once

    def _set_best_metric(self) -> None:
        """The direction of each metric: transformers would take all but "…loss" for one that should rise."""
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        if not self.load_best_model_at_end and self.save_strategy != "best" and self.metric_for_best_model is None:
            return
        self.metric_for_best_model = name = self.metric_for_best_model or "loss"
        if self.greater_is_better is None:
            self.greater_is_better = _is_higher_better(name)


def _is_higher_better(name: str) -> bool:
    words = set(re.split(r"[_/]", name))
    if words & set(LOWER_IS_BETTER):
        return False
    if words & set(HIGHER_IS_BETTER):
        return True
    raise ValueError(
        f"metric_for_best_model must be a metric of an evaluation ({', '.join(LOWER_IS_BETTER)}, …); got {name!r}. For "
        "one of compute_metrics, say its direction with greater_is_better."
    )


def _what_to_do(train: bool | None, evaluate: bool | None) -> tuple[bool, bool]:
    if train is None and evaluate is None:
        return True, True
    train = not evaluate if train is None else train
    evaluate = not train if evaluate is None else evaluate
    if not train and not evaluate:
        raise ValueError("do_train and do_eval are both false, which leaves nothing to do. Set one of them to true.")
    return train, evaluate


Arguments = tuple[ModelArguments, DataArguments, TrainArguments]
