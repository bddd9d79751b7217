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
from transformers.trainer_utils import IntervalStrategy

from loramoe.analysis.card import write_card
from loramoe.analysis.report import FIGURES, remove_report
from loramoe.data import DatasetError, PromptFormat
from loramoe.training import checkpoint
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.arguments.parser import parse
from loramoe.training.callbacks import NonFiniteError, StopAtSignal, StoppedError
from loramoe.training.distributed import decide_on_rank_0, exit_process, exit_with_launcher, start_engine
from loramoe.training.model import add_adapter, enable_varlen_attention, load_base
from loramoe.training.prepare import Prepared, build_recipe, prepare
from loramoe.training.summary import (
    Metrics,
    before_and_after,
    create_repository,
    dry_run_summary,
    final_summary,
    push,
    report_experts,
    table,
)
from loramoe.training.trainer import LoraMoeTrainer
from loramoe.utils import FAILED, TRY_AGAIN, USER_ERRORS, UsageError, as_usage_error, write_json

OUT_OF_MEMORY: Final = (
    "out of memory ({error}). Try a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, "
    "--gradient_checkpointing true, or a shorter --max_seq_length; then --load_in_kbits 4, or engine=zero3."
)


def main(argv: list[str] | None = None) -> int:
    """The command `loramoe train`: errors that users can fix are printed in one line.

    Args:
        argv: The flags. Default: the command line.

    Returns:
        0 after a finished run, 75 after one that a signal stopped and that has saved, 1 after any other.
    """
    try:
        with as_usage_error(ValueError, TypeError, OSError):
            arguments = parse(argv)
    except UsageError as error:
        return _print_error(error, FAILED)
    exit_with_launcher()
    code = _run(arguments)
    exit_process(code)
    return code


def _run(arguments: Arguments) -> int:
    try:
        run_sft(arguments)
    except StoppedError as stop:
        return _print_error(stop, TRY_AGAIN)
    except (*USER_ERRORS, DatasetError, NonFiniteError) as error:
        return _print_error(error, FAILED)
    except torch.OutOfMemoryError as error:
        return _print_error(OUT_OF_MEMORY.format(error=" ".join(str(error).split())[:200]), FAILED)
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _print_error(error: object, code: int) -> int:
    print(f"loramoe train: {error}", file=sys.stderr)
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
) -> Metrics:
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
    model_args, _, args = prepared.arguments
    if args.dry_run:
        if args.should_log:
            print(dry_run_summary(prepared))
        return {"before": {}, "after": {}}
    repository = create_repository(args)
    with contextlib.ExitStack() as stack:
        recipe, resume_from = _open_run(prepared, stack)
        _set_evaluation(prepared, resume_from)
        start_engine(args, bool(prepared.probes), model_args.load_in_kbits)
        set_seed(args.seed)
        trainer = _make_trainer(prepared, trainer_class, callbacks, compute_metrics)
        if not args.do_train:
            return _evaluate_only(trainer, model_args.adapter)
        _clear_output_dir(trainer, recipe, resume_from)
        stop = StopAtSignal()
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        stop.raise_if_stopped(args, trainer.state)
        if result.metrics:  # none where an earlier start had done all the steps
            trainer.save_metrics("train", result.metrics)
        trainer.save_model(args.output_dir)
        return _finish(trainer, prepared, repository)


def _open_run(prepared: Prepared, stack: contextlib.ExitStack) -> tuple[dict[str, Any], Path | None]:
    """Rank 0 locks the folder and decides for all where to start; ranks that look by themselves could differ."""
    args = prepared.arguments[2]
    if not args.do_train:
        return {}, None
    recipe, output_dir = build_recipe(prepared), Path(args.output_dir)

    def decide() -> Path | None:
        stack.enter_context(checkpoint.lock_run(output_dir))
        return checkpoint.resume_point(output_dir, args.resume_from_checkpoint, args.overwrite_output_dir, recipe)

    start = decide_on_rank_0(decide)
    if start is not None and not (start / checkpoint.COMPLETE).is_file():
        raise FileNotFoundError(
            f"rank 0 resumes from {start}, which rank {args.process_index} does not see. Put output_dir on a file "
            "system that all machines share."
        )
    return recipe, start


def _set_evaluation(prepared: Prepared, resume_from: Path | None) -> None:
    args, sets = prepared.arguments[2], prepared.splits.validation
    if not sets:
        if not args.do_train and not prepared.probes:
            raise UsageError("there are no samples to evaluate on. Set --validation_file, or --recall_file.")
        if args.load_best_model_at_end:
            raise UsageError(
                "load_best_model_at_end needs samples to evaluate on, and there are none. Set --validation_file, or a "
                "--validation_split_percentage above 0, or leave it out."
            )
        args.do_eval, args.eval_strategy = False, IntervalStrategy.NO  # the Trainer would insist on samples
    args.eval_on_start = args.eval_on_start and bool(args.do_eval) and resume_from is None


def _make_trainer(
    prepared: Prepared,
    trainer_class: type[LoraMoeTrainer],
    callbacks: Sequence[TrainerCallback],
    compute_metrics: Callable[[Any], dict[str, float]] | None,
) -> LoraMoeTrainer:
    model_args, data_args, args = prepared.arguments
    base = load_base(model_args, args)
    if data_args.packing or data_args.padding_free:
        enable_varlen_attention(base)
    args.label_names = ["labels"]
    args.prediction_loss_only = compute_metrics is None
    validation = prepared.splits.validation
    rates = {"router": args.router_learning_rate, "B": (args.loraplus_lr_ratio or 0) * args.learning_rate}
    stopping = [] if args.early_stopping_patience is None else [EarlyStoppingCallback(args.early_stopping_patience)]
    _continue_tracker(args)
    with as_usage_error(ValueError, ImportError):
        return trainer_class(
            model=add_adapter(base, model_args, prepared.config),
            args=args,
            tokenizer=prepared.tokenizer,
            prompt_format=PromptFormat(data_args.template, data_args.max_seq_length, prepared.type_names),
            probes=prepared.probes,
            on_nonfinite=args.on_nonfinite,
            learning_rates={kind: rate for kind, rate in rates.items() if rate},
            train_dataset=prepared.splits.train,
            eval_dataset=(next(iter(validation.values())) if len(validation) == 1 else validation) or None,
            data_collator=prepared.collator,
            compute_metrics=compute_metrics,
            callbacks=[*callbacks, *stopping],
        )


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
    args = trainer.args
    output_dir = Path(args.output_dir)
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


def _evaluate_only(trainer: LoraMoeTrainer, adapter: str | None) -> Metrics:
    """Evaluates, and leaves all that a training wrote in output_dir, but for an earlier eval_results.json."""
    results: dict[str, float] = trainer.evaluate() if trainer.args.do_eval else {}
    recall = trainer.measure_recall()
    if recall is not None:
        results["recall"] = recall
    trainer.save_metrics("eval", results, combined=False)
    metrics: Metrics = {"before": {}, "after": before_and_after(trainer.state.log_history)["after"]}
    if trainer.args.should_log:
        print("\n".join([f"evaluated {adapter}", *(f"  {line}" for line in table(metrics))]))
    return metrics


def _final_evaluation(trainer: LoraMoeTrainer) -> dict[str, float]:
    """Evaluates, unless the last step of the training has just been evaluated."""
    evaluations = [entry for entry in trainer.state.log_history if any(n.startswith("eval_") for n in entry)]
    at_last_step = [entry for entry in evaluations if entry["step"] == trainer.state.global_step > 0]
    if at_last_step and trainer.evaluated and not trainer.args.load_best_model_at_end:
        return {name: value for entry in at_last_step for name, value in entry.items()}
    return dict(trainer.evaluate())


def _finish(trainer: LoraMoeTrainer, prepared: Prepared, repository: str | None) -> Metrics:
    args = prepared.arguments[2]
    output_dir = Path(args.output_dir)
    adapter, report = output_dir / checkpoint.ADAPTER, output_dir / checkpoint.PAGES
    if args.do_eval:
        trainer.save_metrics("eval", _final_evaluation(trainer))
    trainer.measure_recall()
    trainer.save_state()
    metrics = before_and_after(trainer.state.log_history)
    if args.should_save:
        conclusion = report_experts(trainer, prepared, report)
        write_card(
            adapter,
            trainer.model.peft_config[checkpoint.ADAPTER],
            prepared.arguments[0].base_model,
            metrics,
            args,
            trainer.state,
            data=prepared.splits.report,
            conclusion=conclusion,
            figure=report / FIGURES[0] if (report / FIGURES[0]).is_file() else None,
            repository=repository,
        )
        write_json(output_dir / checkpoint.METRICS, metrics)
        print(final_summary(prepared.arguments, metrics, conclusion))
        if repository is not None:
            print(f"Pushed: {push(repository, adapter, args.hub_revision)}")
    return metrics
