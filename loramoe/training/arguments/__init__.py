"""The flags of `loramoe train` in three groups: the model and its adapter, the data, the training.

Defaults are the paper's. Every field of transformers' TrainingArguments is a flag too. A flag whose name differs from
that of earlier versions, or of other trainers, has the other name as an alias.
"""

from loramoe.training.arguments.data import DataArguments
from loramoe.training.arguments.model import ModelArguments
from loramoe.training.arguments.training import TrainArguments

__all__ = ["Arguments", "DataArguments", "ModelArguments", "TrainArguments"]

Arguments = tuple[ModelArguments, DataArguments, TrainArguments]
