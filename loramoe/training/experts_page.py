"""The page on the experts that a training leaves, as `python -m loramoe.report` makes it of any adapter.

The run is finished before: whatever goes wrong here costs the page, and a warning says why. All processes take part, on
the same rows, because under ZeRO-3 each holds a part of every weight. One that gave up alone would leave the others
waiting for its part. So all agree before the first forward whether there will be one, and under ZeRO-3 an error within
a forward ends the run with its error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers.integrations import is_deepspeed_zero3_enabled

from loramoe.data import SftCollator, evenly_spaced
from loramoe.decoding import pad_id
from loramoe.report.card import public_name
from loramoe.report.measures import measure
from loramoe.report.page import Source
from loramoe.report.routing import Routing, observe, routed
from loramoe.report.tokens import text_of
from loramoe.report.write import write_pages
from loramoe.training.arguments import Arguments
from loramoe.training.checkpoint import ADAPTER, PAGES

logger = logging.getLogger(__name__)

PAGE_SAMPLES: Final = 512
"""Most rows that it is made from: enough for shares, and a small part of an evaluation."""

_Result = TypeVar("_Result")


def write_experts_page(trainer: Any, arguments: Arguments) -> None:
    """Runs at most PAGE_SAMPLES of the rows to evaluate on through the model, and writes output_dir/report/.

    Every process of a run has to call it.

    Args:
        trainer: The Trainer, after the training.
        arguments: What the run was started with.
    """
    args = trainer.args
    rows, fault = _attempt(partial(_rows, trainer))
    fault = next(filter(None, gather_object([fault])), None)
    routing: Routing | None = None
    if rows is not None and fault is None:
        look = partial(_observe, trainer, rows)
        routing, fault = (look(), None) if is_deepspeed_zero3_enabled() else _attempt(look)
    if routing is not None and args.should_save:
        _, fault = _attempt(partial(_write, routing, trainer, arguments))
    if fault is not None and args.should_log:
        logger.warning("no page on the experts: %s", fault)


def _attempt(work: Callable[[], _Result]) -> tuple[_Result | None, str | None]:
    """The result of some work, or what went wrong."""
    try:
        return work(), None
    except ValueError as error:  # ours say what to do
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}. python -m loramoe.report makes it from the saved adapter."


def _rows(trainer: Any) -> list[dict[str, Any]]:
    """All that can go wrong in one process alone."""
    if trainer.is_fsdp_enabled:  # which gathers the weights for its own forward alone
        raise ValueError("FSDP shards the model. python -m loramoe.report makes it from the saved adapter.")
    routed(trainer.model)
    sets = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    return [sample for samples in sets for sample in evenly_spaced(samples, PAGE_SAMPLES // len(sets))]


def _observe(trainer: Any, rows: Any) -> Routing:
    """What the routers do in the precision of the training."""
    args = trainer.args
    collate = SftCollator(pad_id(trainer.tokenizer_to_save))
    batches: DataLoader[Any] = DataLoader(rows, args.per_device_eval_batch_size, collate_fn=collate)
    with trainer.accelerator.autocast():
        return observe(trainer.model, batches, progress=args.should_log and not args.disable_tqdm)


def _write(routing: Routing, trainer: Any, arguments: Arguments) -> None:
    model, data, training = arguments
    rows = Path(data.validation_file).resolve().name if data.validation_file else "the validation samples"
    config = trainer.model.peft_config[ADAPTER]
    source = Source(ADAPTER, public_name(model.base_model), rows, config)
    measures = measure(routing, partial(text_of, trainer.tokenizer_to_save))
    write_pages(measures, source, Path(training.output_dir) / PAGES)
