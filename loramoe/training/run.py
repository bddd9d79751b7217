"""One run of fine-tuning, from flags to a saved adapter with its numbers and its figure."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from loramoe import LoraMoeConfig
from loramoe.data import PackedCollator, SftCollator, Splits, data_files, data_fingerprint
from loramoe.recall import Probe, read_probes
from loramoe.report.card import write_card
from loramoe.report.write import remove_pages
from loramoe.training import checkpoint as checkpoints
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.callbacks import StopAtSignal
from loramoe.training.card import Origin, describe
from loramoe.training.distributed import decide_on_rank_0, start_engine
from loramoe.training.experts_page import leave_page
from loramoe.training.hub import open_repository, push
from loramoe.training.model import adapter_config, add_adapter, load_base, load_tokenizer
from loramoe.training.packing import attend_by_sample
from loramoe.training.rows import load_data, make_collator, types_of_rows
from loramoe.training.summary import before_and_after, closing_words, table, write_report
from loramoe.training.trainer import LoraMoeTrainer
from loramoe.utils import UsageError, as_usage_error, write_json

# Flags that do not shape the trajectory, by the beginning of their names; all others must be the same to resume.
_HARMLESS: tuple[str, ...] = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "do_", "run_name")
_HARMLESS += ("log", "report_to", "project", "trackio_", "disable_tqdm", "debug", "include_", "skip_memory_metrics")
_HARMLESS += ("save_", "eval_", "per_device_eval_batch_size", "batch_eval_metrics", "hub_", "push_to_hub", "enable_jit")
_HARMLESS += ("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch")
_HARMLESS += ("preprocessing_num_workers", "ddp_", "local_rank", "on_nonfinite", "experts_page")


def run(arguments: Arguments) -> dict[str, dict[str, float]]:
    """Trains, evaluates and saves as the flags say.

    Args:
        arguments: What `parse` returned.

    Returns:
        `before` and `after`, each with those of `loss`, `perplexity` (of the LM alone) and `recall` that were measured.

    Raises:
        UsageError: If flags are not usable; see the message.
        DatasetError: If the data is not.
        FileExistsError: If output_dir holds a finished run, or an interrupted one with other arguments, or is in use.
        FileNotFoundError: If a file or checkpoint does not exist.
        SaveError: If a checkpoint cannot be written, or a finished adapter cannot be pushed.
        NonFiniteError: If the loss is NaN or infinite, and on_nonfinite is stop.
        StoppedError: If a signal asked the run to stop, once it has saved.
    """
    with contextlib.ExitStack() as locks:
        return _run(arguments, locks)


def _run(arguments: Arguments, locks: contextlib.ExitStack) -> dict[str, dict[str, float]]:
    model_args, data_args, args = arguments = _naming_the_adapter(arguments)
    # Everything that can be wrong with the input comes before the base model, which takes long to load.
    config = adapter_config(model_args)
    with as_usage_error(ValueError):
        probes = read_probes(data_args.recall_file) if data_args.recall_file else []
    tokenizer = load_tokenizer(model_args)
    trajectory = _trajectory(arguments, tokenizer, config) if args.do_train else {}
    resume_from, existed = _start_from(args, trajectory, locks) if args.do_train else (None, True)
    splits = load_data(tokenizer, config, data_args, args)
    _fit_evaluation(args, splits, probes, resume_from)
    repository = open_repository(arguments)

    set_seed(args.seed)
    start_engine(args, generates=bool(probes), load_in_kbits=model_args.load_in_kbits)
    base = load_base(model_args, tokenizer, bool(args.gradient_checkpointing), bool(args.bf16))
    if data_args.packing:
        attend_by_sample(base)
    model = add_adapter(base, model_args, config)
    trainer = _make_trainer(model, tokenizer, splits, probes, args, make_collator(tokenizer, data_args))
    if not args.do_train:
        return _evaluate_only(trainer, arguments)
    if not existed and args.should_save:  # refused input leaves no folder behind
        locks.enter_context(checkpoints.lock_run(Path(args.output_dir)))
        checkpoints.check_new(Path(args.output_dir))
    _open_output_dir(trainer, trajectory, resume_from)

    stop = StopAtSignal()
    trainer.add_callback(stop)
    result = trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    stop.raise_if_stopped(args, trainer.state)
    if result.metrics:  # none where an earlier start had done all the steps
        trainer.save_metrics("train", result.metrics)
    trainer.save_model(args.output_dir)
    origin = Origin(splits, trajectory["training data"], resume_from, repository)
    return _finish(trainer, arguments, config, origin)


def _naming_the_adapter(arguments: Arguments) -> Arguments:
    """Without training, what is evaluated is the adapter of peft_path, or else the one that output_dir holds."""
    model_args, data_args, args = arguments
    if args.do_train or model_args.peft_path is not None:
        return arguments
    adapter = Path(args.output_dir) / checkpoints.ADAPTER
    if not adapter.is_dir():
        raise UsageError(
            f"there is no adapter to evaluate: peft_path is not set, and {adapter} does not exist. "
            "Set --peft_path, the --output_dir of a finished run, or --do_train true."
        )
    return dataclasses.replace(model_args, peft_path=str(adapter)), data_args, args


def _trajectory(arguments: Arguments, tokenizer: Any, config: LoraMoeConfig) -> dict[str, Any]:
    """All that shapes the trajectory of a run, as JSON would give it back."""
    model_args, data_args, args = arguments
    flags = {**dataclasses.asdict(model_args), **dataclasses.asdict(data_args), **args.to_dict()}
    data = data_fingerprint(
        data_files(data_args.dataset_dir or data_args.train_file or ""),
        tokenizer,
        template=data_args.prompt_template,
        max_seq_length=data_args.max_seq_length,
        task_types=types_of_rows(config),
    )
    shaping = {name: value for name, value in flags.items() if not name.startswith(_HARMLESS)}
    values = {**shaping, "world_size": args.world_size, "training data": data}
    if args.deepspeed:  # what the file holds, not only where it is
        values["DeepSpeed's configuration"] = args.hf_deepspeed_config.config
    return cast(dict[str, Any], json.loads(json.dumps(values, default=str)))


def _start_from(
    args: TrainArguments, trajectory: dict[str, Any], locks: contextlib.ExitStack
) -> tuple[Path | None, bool]:
    def decide() -> tuple[Path | None, bool]:
        output_dir = Path(args.output_dir)
        existed = output_dir.is_dir()
        if existed:
            locks.enter_context(checkpoints.lock_run(output_dir))
        wish, overwrite = args.resume_from_checkpoint, args.overwrite_output_dir
        return checkpoints.resume_point(output_dir, wish, overwrite, trajectory), existed

    start, existed = decide_on_rank_0(decide)
    if start is not None and not (start / checkpoints.COMPLETE).is_file():
        raise FileNotFoundError(
            f"rank 0 resumes from {start}, which rank {args.process_index} does not see. "
            "Put output_dir on a file system that all machines share."
        )
    return start, existed


def _fit_evaluation(args: TrainArguments, splits: Splits, probes: list[Probe], resume_from: Path | None) -> None:
    if splits.validation is None:
        if not args.do_train and not probes:
            raise UsageError("there are no rows to evaluate on. Set --validation_file, or --recall_file.")
        if args.load_best_model_at_end:
            raise UsageError(
                "load_best_model_at_end needs rows to evaluate on, and there are none. Set --validation_file, or a "
                "--validation_split_percentage above 0, or leave it out."
            )
        args.do_eval, args.eval_strategy = False, IntervalStrategy.NO  # the Trainer would insist on rows
    args.eval_on_start = args.eval_on_start and bool(args.do_eval) and resume_from is None


def _make_trainer(
    model: Any,
    tokenizer: Any,
    splits: Splits,
    probes: list[Probe],
    args: TrainArguments,
    collator: SftCollator | PackedCollator,
) -> LoraMoeTrainer:
    args.label_names = ["labels"]
    args.prediction_loss_only = True
    trainer = LoraMoeTrainer(
        model=model,
        args=args,
        tokenizer=tokenizer,
        probes=probes,
        on_nonfinite=args.on_nonfinite,
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        data_collator=collator,
    )
    trainer.add_callback(RecallAtStart(trainer))
    return trainer


class RecallAtStart(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Measures the recall once the model is wrapped and on its device, and has not learnt anything yet."""

    def __init__(self, trainer: LoraMoeTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs when the training begins or resumes."""
        if state.global_step == 0:
            self.trainer.measure_recall()


def _open_output_dir(trainer: LoraMoeTrainer, trajectory: dict[str, Any], resume_from: Path | None) -> None:
    args = trainer.args
    output_dir = Path(args.output_dir)
    if args.should_save:
        if args.overwrite_output_dir:
            checkpoints.clear(output_dir, resume_from)
        for name in (checkpoints.METRICS, checkpoints.FIGURE, checkpoints.SHARES):
            (output_dir / name).unlink(missing_ok=True)  # a finished run that is resumed is none any more
        remove_pages(output_dir / checkpoints.PAGES)
        write_json(output_dir / checkpoints.ARGUMENTS, trajectory)
    if args.should_log:
        trainer.model.print_trainable_parameters()
        if resume_from is not None:
            print(f"resuming from {resume_from}")


def _evaluate_only(trainer: LoraMoeTrainer, arguments: Arguments) -> dict[str, dict[str, float]]:
    """Evaluates, and leaves all that a training wrote in output_dir, but for an earlier eval_results.json."""
    results: dict[str, float] = trainer.evaluate() if trainer.args.do_eval else {}
    recall = trainer.measure_recall()
    if recall is not None:
        results["recall"] = recall
    trainer.save_metrics("eval", results, combined=False)
    metrics = {"before": {}, "after": before_and_after(trainer.state.log_history)["after"]}
    if trainer.args.should_log:
        print("\n".join([f"evaluated {arguments[0].peft_path}", *(f"  {line}" for line in table(metrics))]))
    return metrics


def _final_evaluation(trainer: LoraMoeTrainer) -> dict[str, float]:
    """Evaluates, unless the last step of the training has just been evaluated."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    at_last_step = evaluations and evaluations[-1]["step"] == trainer.state.global_step > 0
    if at_last_step and trainer.eval_shares is not None and not trainer.args.load_best_model_at_end:
        return dict(evaluations[-1])
    metrics: dict[str, float] = trainer.evaluate()
    return metrics


def _finish(
    trainer: LoraMoeTrainer, arguments: Arguments, config: LoraMoeConfig, origin: Origin
) -> dict[str, dict[str, float]]:
    args = arguments[2]
    output_dir = Path(args.output_dir)
    adapter, figure = output_dir / checkpoints.ADAPTER, output_dir / checkpoints.FIGURE
    if args.do_eval:
        trainer.save_metrics("eval", _final_evaluation(trainer))
    trainer.measure_recall()
    trainer.save_state()
    metrics = before_and_after(trainer.state.log_history)
    if args.should_save:
        if trainer.eval_shares is not None:
            write_report(trainer.eval_shares, output_dir, config.blc_target, config.blc_weight)
        write_card(describe(trainer, arguments, metrics, origin), adapter, figure if figure.is_file() else None)
        write_json(output_dir / checkpoints.METRICS, metrics)
    if args.do_eval and args.experts_page:  # the run is finished: without a page, too
        leave_page(trainer, arguments)
    if args.should_save:
        print(closing_words(arguments, metrics, trainer.eval_shares))
        if origin.repository is not None:
            print(f"Pushed: {push(origin.repository, adapter, args)}")
    return metrics
