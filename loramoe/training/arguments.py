"""The flags of `train.py`, in three groups: the model and its adapter, the data, the training.

The original release's flags keep their names and meaning; every field of transformers' TrainingArguments is a flag too.
Defaults are the paper's. Flags come from the command line, or from one .json or .yaml file; flags after it override it.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from transformers import HfArgumentParser, TrainingArguments

from loramoe.training.distributed import check_engine
from loramoe.training.flag_file import FLAG_FILES, flags_of_file
from loramoe.training.model_arguments import ModelArguments
from loramoe.training.plain_values import check_values
from loramoe.training.versions import set_checkpointing, set_grouping, set_warmup
from loramoe.utils import comma_list, require


@dataclass
class DataArguments:
    """The rows to train and to evaluate on."""

    dataset_dir: str | None = field(default=None, metadata={"help": "Folder of .json and .jsonl files to train on."})
    train_file: str | None = field(default=None, metadata={"help": "One file to train on, in place of dataset_dir."})
    validation_file: str | None = field(default=None, metadata={"help": "File, or folder, to evaluate on."})
    validation_split_percentage: float | None = field(
        default=None,
        metadata={
            "help": "Per cent of the training rows to evaluate on where there is no validation_file; 0: none; between "
            "0 and 1 a share, as the release's flag was: 0.05 is 5 per cent. Default: 5."
        },
    )
    max_seq_length: int = field(default=1024, metadata={"help": "Longest row in tokens, prompt and answer together."})
    packing: bool = field(
        default=False,
        metadata={"help": "Put the rows of a forward one after the other into one row, in place of padding them."},
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenise. Default: 1."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Tokenise rows when they are needed, in place of all of them before the first step."},
    )
    prompt_template: Literal["release", "chat"] = field(
        default="release",
        metadata={"help": "release: instruction[\\ninput]</s>output</s>; chat: the tokenizer's chat template."},
    )
    recall_file: str | None = field(
        default=None,
        metadata={"help": "JSON list of {prompt, answer}: facts to ask for before and after the training."},
    )

    def __post_init__(self) -> None:
        if not self.dataset_dir and not self.train_file:
            raise ValueError("there is nothing to train on. Set --dataset_dir FOLDER, or --train_file FILE.")
        if self.dataset_dir and self.train_file:
            raise ValueError(
                f"dataset_dir and train_file exclude each other; got dataset_dir={self.dataset_dir!r} and "
                f"train_file={self.train_file!r}. Keep one of them."
            )
        percentage = self.split_percentage()
        if percentage and not 1 <= percentage <= 99:
            raise ValueError(
                "validation_split_percentage must be 0, from 1 to 99, or a share from 0.01 to below 1; got "
                f"validation_split_percentage={self.validation_split_percentage}. For 5 per cent, write 5 or 0.05."
            )

    def split_percentage(self) -> float | None:
        """Per cent of the training rows to set aside; a value below 1 is a share, as the release's flag took it."""
        share = self.validation_split_percentage
        if share is None:
            return None if self.validation_file else 5.0
        return share * 100 if share < 1 else share


@dataclass
class TrainArguments(TrainingArguments):  # type: ignore[misc]  # transformers is not typed
    """Everything of transformers' TrainingArguments, with the paper's values as defaults."""

    # nargs and const, which the parser gives to plain bools alone, allow the flag without a value.
    do_train: bool | None = field(
        default=None,
        metadata={"help": "Train. Default: both, or what the other flag leaves.", "nargs": "?", "const": True},
    )
    do_eval: bool | None = field(
        default=None,
        metadata={"help": "Evaluate; alone: the adapter of peft_path or output_dir.", "nargs": "?", "const": True},
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Shape of the learning rate over the steps."})
    warmup_ratio: float = field(
        default=0.03,
        metadata={"help": "Share of all steps over which the learning rate rises; warmup_steps overrides it."},
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={"help": "When to evaluate: no, steps or epoch. There is always one evaluation at the end."},
    )
    evaluation_strategy: str | None = field(default=None, metadata={"help": "Older name of eval_strategy."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before the first step too, for comparison."})
    report_to: str | None = field(
        default="none", metadata={"help": "Trackers, comma-separated: tensorboard, wandb, trackio, none."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew where output_dir holds an earlier run."}
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is NaN or infinite: stop: end the run and name the rows; skip: leave the "
            "batch out, and count it."
        },
    )
    experts_page: bool = field(
        default=True, metadata={"help": "Leave a page on what each expert does, of at most 512 rows to evaluate on."}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "Draw rows of similar length together, so that they need little padding."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the constraint needs the column task_types."}
    )

    def __post_init__(self) -> None:
        check_values(self)
        if self.output_dir is None:
            raise ValueError("output_dir is where the adapter goes, and is not set. Set --output_dir FOLDER.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: it would drop task_types. Leave the flag out.")
        if self.save_on_each_node:
            raise ValueError(
                "save_on_each_node must be false: rank 0 decides where to resume, and all machines must see the same "
                "output_dir. Leave the flag out, and put output_dir on a file system that they share."
            )
        self.eval_strategy = _one_of_two_names("eval_strategy", self.eval_strategy, self.evaluation_strategy) or "no"
        self.evaluation_strategy = None
        self.report_to = comma_list(self.report_to) if isinstance(self.report_to, str) else self.report_to  # type: ignore[assignment]
        if self.deepspeed:
            require("deepspeed", f"deepspeed={self.deepspeed}")
        if self.use_liger_kernel:
            require("liger_kernel", "use_liger_kernel=True", package="liger-kernel")
        check_engine(self)
        self.do_train, self.do_eval = _what_to_do(self.do_train, self.do_eval)
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
                f"one process must have one GPU; this one has {self.n_gpu}, and the constraint would be computed from "
                f"parts of a batch. Start torchrun --nproc_per_node {self.n_gpu} train.py …, or set "
                "CUDA_VISIBLE_DEVICES=0."
            )
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # torch would warn that it has nothing to pin for


def _what_to_do(train: bool | None, evaluate: bool | None) -> tuple[bool, bool]:
    if train is None and evaluate is None:
        return True, True
    train = not evaluate if train is None else train
    evaluate = not train if evaluate is None else evaluate
    if not train and not evaluate:
        raise ValueError("do_train and do_eval are both false, which leaves nothing to do. Set one of them to true.")
    return train, evaluate


def _one_of_two_names(name: str, value: str | None, older: str | None) -> str | None:
    if value is not None and older is not None and value != older:
        raise ValueError(
            f"{name} and its older name evaluation_strategy contradict each other; got {name}={value!r} and "
            f"evaluation_strategy={older!r}. Keep one of them."
        )
    return value if value is not None else older


Arguments = tuple[ModelArguments, DataArguments, TrainArguments]


def parse(argv: list[str] | None = None) -> Arguments:
    """Parses the flags of `train.py`.

    Args:
        argv: Flags, or one .json or .yaml file of them and flags that override it. Default: the command line.

    Returns:
        The model's, the data's and the training's arguments.

    Raises:
        ValueError: If a flag is unknown, or values contradict each other.
        FileNotFoundError: If the file does not exist.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith(FLAG_FILES):
        argv = flags_of_file(Path(argv[0]), TrainArguments) + argv[1:]
    # Without allow_abbrev=False, argparse would take --lora_r for --lora_rank, and a typo for a wish.
    groups = (ModelArguments, DataArguments, TrainArguments)
    parser = HfArgumentParser(
        groups, allow_abbrev=False, usage="train.py [FILE.yaml] --flag value …   (--help lists all)"
    )
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ValueError(_unknown_flag(unknown[0]))
    return cast(Arguments, parser.parse_args_into_dataclasses(argv, look_for_args_file=False))


def _unknown_flag(word: str) -> str:
    if not word.startswith("--"):
        return f"unexpected argument {word!r}: expected flags, --name value. Put values with spaces in quotes."
    name = word[2:].partition("=")[0]
    known = [f.name for group in (ModelArguments, DataArguments, TrainArguments) for f in dataclasses.fields(group)]
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    hint = f" Did you mean --{close[0]}?" if close else " See python train.py --help for all."
    return f"unknown flag --{name}.{hint}"
