"""From data sets of conversations to batches of tensors.

A data set is a file, a folder or a name on the hub (`sources`). Its samples are recognised and checked (`formats`, and
`read` where a fault is to be found), turned into token ids by a prompt template (`templates`, `encode`), cached
(`pipeline`), divided, mixed and packed (`splits`), and made into batches (`collate`).

Nothing here knows of the model, the mixture or PEFT. Importing this package loads neither `transformers` nor
`datasets`.
"""

from loramoe.data.collate import IGNORE_INDEX, PackedCollator, PackedSamples, SftCollator, pack
from loramoe.data.encode import DataReport
from loramoe.data.formats import Sample
from loramoe.data.prompt_format import PromptFormat, choose_prompt_format, read_prompt_format, save_prompt_format
from loramoe.data.read import read_samples
from loramoe.data.sources import DataConfig, DatasetError, DataSource, data_files, read_data_config
from loramoe.data.splits import Splits, evenly_spaced, load_splits, tokenise_dataset
from loramoe.data.templates import (
    TEMPLATES,
    ChatTemplate,
    Encoded,
    Message,
    PromptTemplate,
    ReleaseTemplate,
    TemplateError,
    conversation,
    get_template,
)

__all__ = [
    "IGNORE_INDEX",
    "TEMPLATES",
    "ChatTemplate",
    "DataConfig",
    "DataReport",
    "DataSource",
    "DatasetError",
    "Encoded",
    "Message",
    "PackedCollator",
    "PackedSamples",
    "PromptFormat",
    "PromptTemplate",
    "ReleaseTemplate",
    "Sample",
    "SftCollator",
    "Splits",
    "TemplateError",
    "choose_prompt_format",
    "conversation",
    "data_files",
    "evenly_spaced",
    "get_template",
    "load_splits",
    "pack",
    "read_data_config",
    "read_prompt_format",
    "read_samples",
    "save_prompt_format",
    "tokenise_dataset",
]
