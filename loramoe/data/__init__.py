"""From data sets of conversations to batches of tensors; nothing here knows of the model, the mixture or PEFT.

A data set is a file, a folder or a name on the hub (`sources`). Its values are read (`read`) and become samples
(`formats`), which a prompt template turns into token ids (`templates`, `chat`); these are cached (`pipeline`), divided,
mixed and packed (`splits`), and made into batches (`collate`). Importing this package loads neither `transformers` nor
`datasets`.
"""

from loramoe.data.chat import ChatTemplate, PromptTemplate, get_template
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
    ReleaseTemplate,
    TemplateError,
    choose_prompt_format,
    read_prompt_format,
    save_prompt_format,
)

__all__ = ["IGNORE_INDEX", "PackedCollator", "PackedSamples", "SftCollator", "data_files", "pack", "read_samples"]
__all__ += ["DataConfig", "DataReport", "DataSource", "DatasetError", "Message", "Sample", "conversation"]
__all__ += ["Splits", "evenly_spaced", "load_splits", "read_data_config", "tokenise_dataset"]
__all__ += ["TEMPLATES", "ChatTemplate", "Encoded", "PromptTemplate", "ReleaseTemplate", "TemplateError"]
__all__ += ["PromptFormat", "choose_prompt_format", "get_template", "read_prompt_format", "save_prompt_format"]
