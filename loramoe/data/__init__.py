"""From files of instructions to batches of tensors.

A row of the data is an instruction, an optional input, the output to learn and a task type. On its way to the model it
is read and checked (`parse`, `read`), turned into token ids (`templates`; `prompt_format` keeps how), stored with its
labels (`tokenise`, cached by `fingerprint`) or tokenised when it is needed (`stream`), split into training and
validation rows (`splits`) and padded into a batch (`collate`), or packed into one without padding (`packing`).

Nothing here knows of the model, the mixture or PEFT. Importing this package loads neither `transformers` nor
`datasets`: the tokenizer comes from the caller, and `datasets` is imported by the functions that store rows with it.
"""

from loramoe.data.collate import IGNORE_INDEX, SftCollator
from loramoe.data.fingerprint import data_fingerprint
from loramoe.data.packing import PackedCollator
from loramoe.data.prompt_format import PromptFormat, choose_prompt_format, read_prompt_format, save_prompt_format
from loramoe.data.read import DatasetError, data_files, iter_rows
from loramoe.data.report import StreamReport, TokeniseReport
from loramoe.data.row import Row
from loramoe.data.splits import Splits, load_splits
from loramoe.data.stream import StreamedRows, stream_dataset
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
from loramoe.data.tokenise import tokenise_dataset
from loramoe.data.workers import WorkerDiedError

__all__ = [
    "IGNORE_INDEX",
    "TEMPLATES",
    "ChatTemplate",
    "DatasetError",
    "Encoded",
    "Message",
    "PackedCollator",
    "PromptFormat",
    "PromptTemplate",
    "ReleaseTemplate",
    "Row",
    "SftCollator",
    "Splits",
    "StreamReport",
    "StreamedRows",
    "TemplateError",
    "TokeniseReport",
    "WorkerDiedError",
    "choose_prompt_format",
    "conversation",
    "data_files",
    "data_fingerprint",
    "get_template",
    "iter_rows",
    "load_splits",
    "read_prompt_format",
    "save_prompt_format",
    "stream_dataset",
    "tokenise_dataset",
]
