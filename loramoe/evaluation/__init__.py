"""Closed-book knowledge and downstream tasks: what a base model can do, and what it can do with an adapter.

Questions come from files (`tasks`, `example`), become tokens (`requests`), are put to a model by the likelihood of
answers (`likelihood`) and by generation, judged (`metrics`), gathered (`scoring`), summed up with intervals
(`statistics`) and told (`table`, `results`). `loramoe.evaluate` is the command of all that.
"""

from loramoe.evaluation.example import Example
from loramoe.evaluation.metrics import exact_match, f1, normalised
from loramoe.evaluation.scoring import Prepared, Scores, Settings, prepare, score
from loramoe.evaluation.statistics import Estimate, Line, summarise
from loramoe.evaluation.table import markdown
from loramoe.evaluation.tasks import Task, read_task, read_tasks

__all__ = [
    "Estimate",
    "Example",
    "Line",
    "Prepared",
    "Scores",
    "Settings",
    "Task",
    "exact_match",
    "f1",
    "markdown",
    "normalised",
    "prepare",
    "read_task",
    "read_tasks",
    "score",
    "summarise",
]
