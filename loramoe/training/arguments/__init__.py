"""The flags of `loramoe train` (`flags`), and their parser, which takes files of flags too (`parser`)."""

from loramoe.training.arguments.flags import Arguments, DataArguments, ModelArguments, TrainArguments

__all__ = ["Arguments", "DataArguments", "ModelArguments", "TrainArguments"]
