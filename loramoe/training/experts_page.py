"""The page on the experts that a training leaves, as `loramoe report` makes it of any adapter.

Rank 0 makes it alone, from the model that it holds whole. The run is finished by then: an error costs the page only.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch.utils.data import DataLoader, IterableDataset
from transformers.integrations import is_deepspeed_zero3_enabled

from loramoe.data import SftCollator, evenly_spaced
from loramoe.decoding import pad_id
from loramoe.report.card import public_name
from loramoe.report.measures import measure
from loramoe.report.page import Source
from loramoe.report.routing import observe, routed
from loramoe.report.tokens import text_of
from loramoe.report.write import write_pages
from loramoe.training.arguments import Arguments
from loramoe.training.checkpoint import ADAPTER, PAGES

logger = logging.getLogger(__name__)

PAGE_SAMPLES: Final = 512
_INSTEAD = "loramoe report makes it from the saved adapter"


def write_experts_page(trainer: Any, arguments: Arguments) -> None:
    """Runs at most PAGE_SAMPLES of the validation samples through the model, and writes output_dir/report/.

    Args:
        trainer: The Trainer, after the training.
        arguments: The flags of the run.
    """
    args = trainer.args
    if not args.should_save:
        return
    try:
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(f"the model is sharded; {_INSTEAD}.")
        _write(trainer, arguments)
    except ValueError as error:
        logger.warning("no page on the experts: %s", error)
    except Exception as error:
        logger.warning("no page on the experts: %s: %s; %s.", type(error).__name__, error, _INSTEAD)


def _write(trainer: Any, arguments: Arguments) -> None:
    model_args, data_args, args = arguments
    routed(trainer.model)
    sets = trainer.eval_dataset.values() if isinstance(trainer.eval_dataset, dict) else [trainer.eval_dataset]
    if any(isinstance(samples, IterableDataset) for samples in sets):
        raise ValueError(f"the validation samples are streamed; {_INSTEAD}.")
    samples = [sample for each in sets for sample in evenly_spaced(each, PAGE_SAMPLES // len(sets))]
    collate = SftCollator(pad_id(trainer.tokenizer_to_save))
    batches: DataLoader[Any] = DataLoader(samples, args.per_device_eval_batch_size, collate_fn=collate)  # type: ignore[arg-type]
    with trainer.accelerator.autocast():  # what the routers do in the precision of the training
        routing = observe(trainer.model, batches, progress=not args.disable_tqdm)
    name = Path(data_args.validation_file).resolve().name if data_args.validation_file else "the validation samples"
    source = Source(ADAPTER, public_name(model_args.base_model), name, trainer.model.peft_config[ADAPTER])
    write_pages(measure(routing, partial(text_of, trainer.tokenizer_to_save)), source, Path(args.output_dir) / PAGES)
