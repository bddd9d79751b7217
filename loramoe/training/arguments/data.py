"""The flags about the samples to train and to evaluate on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from loramoe.data import DataConfig, DataSource, read_data_config


@dataclass
class DataArguments:
    """The samples to train and to evaluate on."""

    datasets: str | None = HfArg(
        default=None, help="YAML file of data sets with their task types and weights (docs/data.md)."
    )
    dataset_dir: str | None = HfArg(
        default=None, help="Folder, file or hub name of the data to train on.", aliases=["--train_file"]
    )
    validation_file: str | None = HfArg(default=None, help="Folder, file or hub name to evaluate on.")
    validation_split_percentage: float | None = HfArg(
        default=None,
        help="Per cent of the training samples to evaluate on where there is no validation data; 0: none; "
        "between 0 and 1 a share. Default: 5.",
    )
    default_task_type: int | None = HfArg(default=None, help="Task type of samples that have none of their own.")
    max_eval_samples: int = HfArg(default=1000, help="Most samples of each validation set, drawn at random; 0: all.")
    template: Literal["release", "chat"] = HfArg(
        default="release",
        help="release: instruction[\\ninput]</s>output</s>; chat: the tokenizer's chat template.",
        aliases=["--prompt_template"],
    )
    max_seq_length: int = HfArg(default=1024, help="Longest sample in tokens, prompt and answer together.")
    packing: bool = HfArg(
        default=False, help="Fill rows to max_seq_length with whole samples, kept apart, without padding."
    )
    padding_free: bool = HfArg(
        default=False, help="Put the samples of a forward pass one after the other, without padding."
    )
    pad_to_multiple_of: int | None = HfArg(
        default=None, help="Round the length of a padded batch up to a multiple of this."
    )
    streaming: bool = HfArg(default=False, help="Read and tokenise samples when they are needed; needs max_steps.")
    preprocessing_num_workers: int = HfArg(default=1, help="Processes that tokenise.")
    recall_file: str | None = HfArg(
        default=None, help="JSON list of {prompt, answer}: facts to ask for before and after the training."
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
            config = DataConfig((DataSource(str(self.dataset_dir), default_task_type=self.default_task_type),))
        if self.validation_file:
            source = DataSource(self.validation_file, default_task_type=self.default_task_type)
            config = DataConfig(config.datasets, (*config.validation, source), config.type_names)
        return config

    def split_percentage(self) -> float | None:
        """Per cent of the training samples to set aside where there is no validation data; None: not given."""
        share = self.validation_split_percentage
        return share * 100 if share is not None and share < 1 else share
