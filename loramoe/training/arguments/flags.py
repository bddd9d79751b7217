"""The flags of `loramoe train` in three groups: the model and its adapter, the data, the training.

Defaults are the paper's. Every field of transformers' TrainingArguments is a flag too. A flag whose name differs from
that of earlier versions, or of other trainers, has the other name as an alias.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from loramoe.data import DataConfig, DataSource, read_data_config
from loramoe.loading import BaseArguments
from loramoe.training.distributed import check_engine
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import comma_list, require

# Flags that are fields of the adapter's configuration, under the same name.
ADAPTER_FLAGS: Final = (
    *("lora_alpha", "lora_dropout", "lora_nums"),
    *("blc_alpha", "blc_weight", "blc_target", "blc_importance"),
)
LOWER_IS_BETTER: Final = {"loss", "perplexity", "blc", "cov"}
HIGHER_IS_BETTER: Final = {"share"}


def flag(default: Any, text: str, *aliases: str) -> Any:
    """A field that is a flag."""
    return HfArg(default=default, help=text, aliases=list(aliases))


@dataclass
class ModelArguments(BaseArguments):
    """The base model and the LoRAMoE adapter on it."""

    adapter: str | None = flag(
        None,
        "Adapter to continue from; its own configuration replaces the adapter's flags.",
        "--peft_path",
    )
    trainable: str | None = flag(
        None,
        "Linear layers to adapt: names, comma-separated, 'all-linear', or a regular expression. "
        "Default: the linear layers of the MLP.",
    )
    lora_rank: int = flag(4, "Rank of each expert.")
    lora_alpha: float = flag(32, "The experts' sum is scaled by lora_alpha / lora_rank.")
    lora_dropout: float = flag(0.05, "Dropout probability on the experts' input.")
    lora_nums: int = flag(8, "Number of experts of each adapted linear layer.")
    blc_alpha: float = flag(
        0.1, "Importance counts 1 + blc_alpha where expert and sample have one type, else 1 - blc_alpha."
    )
    blc_weight: float = flag(0.1, "Weight of the balancing constraint in the loss; 0 is off.")
    expert_types: str | None = flag(
        None, "Type of each expert, comma-separated. Default: 1 for the first half, 0 for the rest."
    )
    blc_target: Literal["paper", "match"] = flag(
        "match", "match: the experts of a sample's type get more gate weight; paper: less."
    )
    blc_importance: Literal["mean", "sum"] = flag(
        "mean", "Importance of an expert: mean or sum of its gates over a sample's tokens."
    )
    modules_to_save: str | None = flag(None, "Modules to train and save whole beside the adapter, comma-separated.")

    def adapter_config(self) -> LoraMoeConfig:
        """The configuration of a new adapter."""
        types, targets = comma_list(self.expert_types), comma_list(self.trainable)
        if types and not all(re.fullmatch(r"-?\d+", item) for item in types):
            raise ValueError(
                f"expert_types must be comma-separated integers, one per expert; got {self.expert_types!r}. "
                "Write for example --expert_types 1,1,0,0 with --lora_nums 4."
            )
        text = self.trainable or ""
        is_pattern = targets == ["all-linear"] or not re.fullmatch(r"[\w.,\s-]*", text)
        return LoraMoeConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            expert_types=None if types is None else [int(item) for item in types],
            target_modules=text.strip() if is_pattern else targets,
            modules_to_save=comma_list(self.modules_to_save),
            **{name: getattr(self, name) for name in ADAPTER_FLAGS},
        )


@dataclass
class DataArguments:
    """The samples to train and to evaluate on."""

    datasets: str | None = flag(None, "YAML file of data sets with their task types and weights (docs/data.md).")
    dataset_dir: str | None = flag(None, "Folder, file or hub name of the data to train on.", "--train_file")
    validation_file: str | None = flag(None, "Folder, file or hub name to evaluate on.")
    validation_split_percentage: float | None = flag(
        None,
        "Per cent of the training samples to evaluate on where there is no validation data; 0: none; "
        "between 0 and 1 a share. Default: 5.",
    )
    default_task_type: int | None = flag(None, "Task type of samples that have none of their own.")
    max_eval_samples: int = flag(1000, "Most samples of each validation set, drawn at random; 0: all.")
    template: Literal["release", "chat"] = flag(
        "release",
        "release: instruction[\\ninput]</s>output</s>; chat: the tokenizer's chat template.",
        "--prompt_template",
    )
    max_seq_length: int = flag(1024, "Longest sample in tokens, prompt and answer together.")
    packing: bool = flag(False, "Fill rows to max_seq_length with whole samples, kept apart, without padding.")
    padding_free: bool = flag(False, "Put the samples of a forward pass one after the other, without padding.")
    pad_to_multiple_of: int | None = flag(None, "Round the length of a padded batch up to a multiple of this.")
    streaming: bool = flag(False, "Read and tokenise samples when they are needed; needs max_steps.")
    preprocessing_num_workers: int = flag(1, "Processes that tokenise.")
    recall_file: str | None = flag(
        None, "JSON list of {prompt, answer}: facts to ask for before and after the training."
    )

    def __post_init__(self) -> None:
        if bool(self.datasets) == bool(self.dataset_dir):
            raise ValueError(
                f"name the training data once, by --dataset_dir FOLDER_OR_FILE or --datasets FILE.yaml; got "
                f"dataset_dir={self.dataset_dir!r} and datasets={self.datasets!r}."
            )
        if self.packing and self.padding_free:
            raise ValueError("packing is padding-free already. Set one of packing and padding_free.")
        percentage = self.split_percentage()
        if percentage and not 1 <= percentage <= 99:
            raise ValueError(
                "validation_split_percentage must be 0, from 1 to 99, or a share from 0.01 to below 1; got "
                f"validation_split_percentage={self.validation_split_percentage}. Correct it."
            )

    def config(self) -> DataConfig:
        """The data sets that the flags name."""
        if self.datasets:  # a file, or its content where a file of flags has it
            config = read_data_config(json.loads(self.datasets) if self.datasets.startswith("{") else self.datasets)
        else:
            config = DataConfig((DataSource(str(self.dataset_dir), default_task_type=self.default_task_type),))
        if self.validation_file:
            source = DataSource(self.validation_file, default_task_type=self.default_task_type)
            config = DataConfig(config.datasets, (*config.validation, source), config.type_names)
        return config

    def split_percentage(self) -> float | None:
        """Per cent of the training samples to set aside where there is no validation data; None: not given."""
        share = self.validation_split_percentage
        return share * 100 if share is not None and share < 1 else share


@dataclass
class TrainArguments(TrainingArguments):  # type: ignore[misc]  # transformers is not typed
    """Everything of transformers' TrainingArguments, with the paper's values as defaults."""

    if TYPE_CHECKING:  # fields of transformers, which is not typed
        hub_token: str | None
        gradient_accumulation_steps: int
        metric_for_best_model: str | None
        greater_is_better: bool | None
        warmup_steps: float
        train_sampling_strategy: str

    do_train: bool = flag(True, "Must stay true: loramoe evaluate evaluates adapters.")
    do_eval: bool = flag(True, "Evaluate before and after the training, and within it as eval_strategy says.")
    per_device_train_batch_size: int = flag(8, "Samples of a process in one forward pass.", "--batch_size")
    global_batch_size: int | None = flag(
        None, "Samples of a step, all processes together; sets gradient_accumulation_steps."
    )
    learning_rate: float = flag(2e-4, "Peak learning rate.")
    router_learning_rate: float | None = flag(None, "Peak learning rate of the routers. Default: learning_rate.")
    loraplus_lr_ratio: float | None = flag(None, "LoRA+: the learning rate of B is this times that of A.")
    lr_scheduler_type: str = flag("cosine", "Shape of the learning rate over the steps.")
    warmup_ratio: float | None = flag(0.03, "Share of the steps over which the learning rate rises; see warmup_steps.")
    eval_strategy: str = flag(
        "no",
        "When to evaluate: no, steps or epoch. There is always one evaluation at the end.",
        "--evaluation_strategy",
    )
    eval_on_start: bool = flag(True, "Evaluate before the first step too, for comparison.")
    early_stopping_patience: int | None = flag(
        None, "Stop after so many evaluations without a better metric_for_best_model."
    )
    report_to: str | None = flag("none", "Trackers, comma-separated: tensorboard, wandb, trackio, none.")
    overwrite_output_dir: bool = flag(False, "Start anew where output_dir holds a run.")
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop", "A loss that is NaN or infinite: stop the run, or skip the batch and count it."
    )
    experts_page: bool = flag(True, "Write a page on what each expert does, at the end.")
    group_by_length: bool = flag(False, "Draw samples of similar length together, so that they need little padding.")
    dry_run: bool = flag(False, "Do everything but load weights and train: print data, batch and memory.")
    remove_unused_columns: bool = flag(False, "Must stay false: the constraint needs the column task_types.")

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("output_dir, where the adapter goes, is not set. Set --output_dir FOLDER.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: it would drop task_types. Leave the flag out.")
        self.report_to = comma_list(self.report_to) if isinstance(self.report_to, str) else self.report_to  # type: ignore[assignment]
        if not self.do_train:
            raise ValueError("do_train must be true; got False. To evaluate alone: loramoe evaluate --adapter DIR.")
        if self.deepspeed:
            require("deepspeed", f"deepspeed={self.deepspeed}")
        if self.use_liger_kernel:
            require("liger_kernel", "use_liger_kernel=True", package="liger-kernel")
        for tracker in {"wandb", "trackio"} & set(self.report_to or ()):
            require(tracker, f"report_to={tracker}")
        check_engine(self)
        self._set_accumulation()
        self._set_best_metric()
        self._set_schedule()
        super().__post_init__()
        if self.n_gpu > 1:
            start = f"Start torchrun --nproc_per_node {self.n_gpu} train.py …, or set CUDA_VISIBLE_DEVICES=0."
            raise ValueError(f"one process must have one GPU; this one has {self.n_gpu}. {start}")
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch would warn that it has nothing to pin for
        token: str | None = self.hub_token
        if token:  # kept out of training_args.bin and of what trackers record; huggingface_hub reads it from here
            os.environ["HF_TOKEN"], self.hub_token = token, None
            sys.argv[:] = [word.replace(token, "hidden") for word in sys.argv]

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
        """Sets the direction of the metric: transformers would take all but "…loss" for one that should rise."""
        self.load_best_model_at_end |= self.early_stopping_patience is not None
        if not self.load_best_model_at_end and self.save_strategy != "best" and self.metric_for_best_model is None:
            return
        self.metric_for_best_model = name = self.metric_for_best_model or "loss"
        words = set(re.split(r"[_/]", name))
        if self.greater_is_better is None and words & (LOWER_IS_BETTER | HIGHER_IS_BETTER):
            self.greater_is_better = not words & LOWER_IS_BETTER
        if self.greater_is_better is None:
            raise ValueError(
                f"metric_for_best_model must be a metric of an evaluation, such as loss; got {name!r}. For one of "
                "compute_metrics, set greater_is_better."
            )

    def _set_schedule(self) -> None:
        """Gives warm-up, checkpointing and grouping one meaning in every version of transformers."""
        if self.warmup_ratio is None or not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1); got {self.warmup_ratio}. Set warmup_steps for steps.")
        self.warmup_steps = self.warmup_steps or self.warmup_ratio  # below 1, transformers takes it for a share
        self.warmup_ratio = None  # transformers before 5.2 warns about it
        # The newer name of the flag comes last; with it, the older one warns.
        names = [name for name in ("gradient_checkpointing", "activation_checkpointing") if hasattr(self, name)]
        enabled = any(getattr(self, name) for name in names)
        options: Any = next((given for name in names if (given := getattr(self, f"{name}_kwargs"))), {})
        options = {"use_reentrant": False, **(json.loads(options) if isinstance(options, str) else options)}
        for name, values in zip(reversed(names), ((enabled, options), (None, None)), strict=False):
            setattr(self, name, values[0])
            setattr(self, f"{name}_kwargs", values[1])
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"  # the flag's name since transformers 5


class Arguments(NamedTuple):
    """All flags of a run."""

    model: ModelArguments
    data: DataArguments
    training: TrainArguments
