"""One run of fine-tuning, from flags to a saved adapter with its numbers and its figure; and `loramoe train` itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

from loramoe.analysis.card import write_card
from loramoe.analysis.report import FIGURES, remove_report
from loramoe.data import DatasetError
from loramoe.training import checkpoint, summary
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.arguments.parser import parse
from loramoe.training.callbacks import StopAtSignal, StoppedError
from loramoe.training.distributed import decide_on_rank_0, exit_process, exit_with_launcher, start_engine
from loramoe.training.model import add_adapter, enable_varlen_attention, load_base
from loramoe.training.prepare import Prepared, build_recipe, prepare
from loramoe.training.trainer import LoraMoeTrainer
from loramoe.utils import FAILED, TRY_AGAIN, USER_ERRORS, UsageError, as_usage_error, write_json

OUT_OF_MEMORY: Final = (
    "out of memory ({error}). Try a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, "
    "--gradient_checkpointing true, or a shorter --max_seq_length; then --load_in_kbits 4, or engine=zero3."
)


def main(argv: list[str] | None = None) -> int:
    """The command `loramoe train`; errors that users can fix are printed in one line.

    Args:
        argv: The flags. Default: the command line.

    Returns:
        0 after a finished run, 75 after one that a signal stopped and that has saved, 1 after any other.
    """
    code, message = FAILED, None
    try:
        with as_usage_error(ValueError, TypeError, OSError):
            arguments = parse(argv)
    except UsageError as error:
        print(f"loramoe train: {error}", file=sys.stderr)
        return code
    exit_with_launcher()
    try:
        run_sft(arguments)
        code = 0
    except StoppedError as stop:
        code, message = TRY_AGAIN, str(stop)
    except (*USER_ERRORS, DatasetError) as error:
        message = str(error)
    except torch.OutOfMemoryError as error:
        message = OUT_OF_MEMORY.format(error=" ".join(str(error).split())[:200])
    except Exception:
        traceback.print_exc()
    if message is not None:
        print(f"loramoe train: {message}", file=sys.stderr)
    exit_process(code)
    return code


def run_sft(
    arguments: Arguments,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[LoraMoeTrainer] = LoraMoeTrainer,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    collator: Any = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
) -> summary.Metrics:
    """Trains, evaluates and saves as the flags say; the other arguments replace parts of it.

    Args:
        arguments: What `loramoe.training.parse` returned.
        callbacks: Added to the Trainer.
        trainer_class: A subclass of LoraMoeTrainer, for example with another `compute_loss`.
        train_dataset: Samples with `input_ids`, `labels` and `task_types`, in place of those that the flags name.
        eval_dataset: Likewise to evaluate on; a dictionary for several sets by name.
        collator: Makes a batch of a list of samples, and keeps `task_types`.
        compute_metrics: As the Trainer takes it.

    Returns:
        `before` and `after`, each with what was measured of `loss`, `perplexity` and `recall`.

    Raises:
        UsageError, DatasetError: If flags or data cannot be used; see the message.
        FileExistsError: If output_dir holds a finished run, or an interrupted one with other arguments, or is in use.
        FileNotFoundError: If a file or checkpoint does not exist.
        SaveError: If a checkpoint cannot be written, or a finished adapter cannot be pushed.
        NonFiniteError: If the loss is NaN or infinite, and on_nonfinite is stop.
        StoppedError: If a signal asked the run to stop, once it has saved.
    """
    prepared = prepare(arguments, train_dataset, eval_dataset, collator)
    args = arguments.training
    if args.dry_run:
        if args.should_log:
            print(summary.dry_run_summary(prepared))
        return {"before": {}, "after": {}}
    repository = summary.create_repository(args)
    with contextlib.ExitStack() as stack:
        recipe = build_recipe(prepared)
        resume_from = _open_run(args, recipe, stack)
        args.eval_on_start = args.eval_on_start and args.do_eval and resume_from is None
        start_engine(args, bool(prepared.probes), arguments.model.load_in_kbits)
        set_seed(args.seed)
        model = _load_model(prepared)
        patience = args.early_stopping_patience
        used = [*callbacks, *([] if patience is None else [EarlyStoppingCallback(patience)])]
        _continue_tracker(args)
        with as_usage_error(ValueError, ImportError):
            trainer = trainer_class(prepared, model=model, callbacks=used, compute_metrics=compute_metrics)
        _clear_output_dir(trainer, recipe, resume_from)
        stop = StopAtSignal()
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        stop.finish(args, trainer.state)
        if result.metrics:  # none where an earlier start had done all the steps
            trainer.save_metrics("train", result.metrics)
        trainer.save_model(args.output_dir)
        return _finish(trainer, prepared, repository)


def _open_run(args: TrainArguments, recipe: dict[str, Any], stack: contextlib.ExitStack) -> Path | None:
    """Rank 0 locks the folder and decides for all where to start; ranks that look by themselves could differ."""
    output_dir = Path(args.output_dir)

    def decide() -> Path | None:
        stack.enter_context(checkpoint.lock_run(output_dir))
        return checkpoint.resume_point(output_dir, args.resume_from_checkpoint, args.overwrite_output_dir, recipe)

    return decide_on_rank_0(decide)


def _load_model(prepared: Prepared) -> Any:
    """The base model with the adapter."""
    model_args, data_args, args = prepared.arguments
    base = load_base(model_args, args)
    if data_args.packing or data_args.padding_free:
        enable_varlen_attention(base)
    return add_adapter(base, model_args, prepared.config)


def _continue_tracker(args: TrainArguments) -> None:
    """A resumed run continues the same run of wandb: its id is kept in output_dir."""
    if "wandb" not in (args.report_to or ()) or not args.should_save or "WANDB_RUN_ID" in os.environ:
        return
    file = Path(args.output_dir) / "wandb_run_id"
    if not file.is_file() or args.overwrite_output_dir:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"] = file.read_text(encoding="utf-8").strip(), "allow"


def _clear_output_dir(trainer: LoraMoeTrainer, recipe: dict[str, Any], resume_from: Path | None) -> None:
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    if args.should_save:
        if args.overwrite_output_dir:
            checkpoint.clear(output_dir, resume_from)
        # A resumed run is unfinished again; all_results.json is read by the Trainer, and may be cut off.
        for name in (checkpoint.METRICS, "all_results.json"):
            (output_dir / name).unlink(missing_ok=True)
        remove_report(output_dir / checkpoint.PAGES)
        write_json(output_dir / checkpoint.ARGUMENTS, recipe)
    if args.should_log:
        trainer.model.print_trainable_parameters()
        if resume_from is not None:
            print(f"resuming from {resume_from}")


def _finish(trainer: LoraMoeTrainer, prepared: Prepared, repository: str | None) -> summary.Metrics:
    """Evaluates the trained adapter, unless the last step has just been evaluated, and writes what the run leaves."""
    args, output_dir = prepared.arguments.training, Path(trainer.args.output_dir)
    adapter, report = output_dir / checkpoint.ADAPTER, output_dir / checkpoint.PAGES
    if args.do_eval:
        step = trainer.state.global_step
        at_end = [entry for entry in trainer.state.log_history if entry["step"] == step > 0]
        done = {name: value for entry in at_end for name, value in entry.items() if name.startswith("eval_")}
        is_current = done and trainer.evaluated and not args.load_best_model_at_end
        trainer.save_metrics("eval", done if is_current else trainer.evaluate())
    trainer.measure_recall()
    trainer.save_state()
    metrics = summary.before_and_after(trainer.state.log_history)
    if args.should_save:
        conclusion = summary.report_experts(trainer, prepared, report)
        write_card(
            adapter,
            trainer.model.peft_config[checkpoint.ADAPTER],
            prepared.arguments.model.base_model,
            metrics,
            args,
            trainer.state,
            data=prepared.splits.report,
            conclusion=conclusion,
            figure=report / FIGURES[0] if (report / FIGURES[0]).is_file() else None,
            repository=repository,
        )
        write_json(output_dir / checkpoint.METRICS, metrics)
        print(summary.final_summary(prepared.arguments, metrics, conclusion))
        if repository is not None:
            print(f"Pushed: {summary.push(repository, adapter, args.hub_revision)}")
    return metrics
