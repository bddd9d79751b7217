"""From data sets of conversations to batches of tensors.

A data set is a file, a folder or a name on the hub (`sources`). Its samples are read (`read`), recognised and checked
(`formats`), turned into token ids by a prompt template (`templates`, `chat`), cached (`pipeline`), divided, mixed
and packed (`splits`), and made into batches (`collate`).

Nothing here knows of the model, the mixture or PEFT. Importing this package loads neither `transformers` nor
`datasets`.
"""

from loramoe.data.chat import ChatTemplate
from loramoe.data.collate import IGNORE_INDEX, PackedCollator, PackedSamples, SftCollator, pack
from loramoe.data.formats import Message, Sample, conversation
from loramoe.data.pipeline import DataReport
from loramoe.data.read import read_samples
from loramoe.data.sources import DataConfig, DatasetError, DataSource, data_files, read_data_config
from loramoe.data.splits import Splits, evenly_spaced, load_splits, tokenise_dataset
from loramoe.data.templates import (
    TEMPLATES,
    Encoded,
    PromptFormat,
    PromptTemplate,
    ReleaseTemplate,
    TemplateError,
    choose_prompt_format,
    get_template,
    read_prompt_format,
    save_prompt_format,
)

__all__ = ["IGNORE_INDEX", "PackedCollator", "PackedSamples", "SftCollator", "pack"]
__all__ += ["Message", "Sample", "conversation"]
__all__ += ["DataReport", "TemplateError", "read_samples"]
__all__ += ["DataConfig", "DataSource", "DatasetError", "data_files", "read_data_config"]
__all__ += ["Splits", "evenly_spaced", "load_splits", "tokenise_dataset"]
__all__ += [
    "TEMPLATES",
    "ChatTemplate",
    "Encoded",
    "PromptTemplate",
    "ReleaseTemplate",
    "TemplateError",
    "get_template",
]
__all__ += ["PromptFormat", "choose_prompt_format", "read_prompt_format", "save_prompt_format"]
