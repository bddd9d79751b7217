"""One run of fine-tuning, from flags to a saved adapter with its numbers and its figure."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from loramoe import LoraMoeConfig
from loramoe.data import SftCollator, Splits, load_splits
from loramoe.recall import Probe, read_probes
from loramoe.training import checkpoints
from loramoe.training.arguments import Arguments, DataArguments, TrainArguments
from loramoe.training.model import adapter_config, add_adapter, load_base, load_tokenizer
from loramoe.training.summary import before_and_after, closing_words, write_report
from loramoe.training.trainer import LoraMoeTrainer

logger = logging.getLogger(__name__)

# What shapes the trajectory of a run, beside all of the model's and the data's flags.
_TRAJECTORY: tuple[str, ...] = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay")
_TRAJECTORY += (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "optim",
)


def run(arguments: Arguments) -> dict[str, dict[str, float]]:
    """Trains, evaluates and saves as the flags say.

    Args:
        arguments: What `parse` returned.

    Returns:
        `before` and `after`, each with those of `loss`, `perplexity` (of the LM alone) and `recall` that were measured.

    Raises:
        ValueError: If flags or data are not usable; see the message.
        FileExistsError: If output_dir holds a finished run, or an interrupted one with other arguments.
        FileNotFoundError: If a file or checkpoint does not exist.
    """
    model_args, data_args, args = arguments
    resume_from = _start_from(arguments)
    # Everything that can be wrong with the input comes before the base model, which takes long to load.
    config = adapter_config(model_args)
    probes = read_probes(data_args.recall_file) if data_args.recall_file else []
    tokenizer = load_tokenizer(model_args)
    splits = _load_data(tokenizer, config, data_args, args)

    set_seed(args.seed)
    model = add_adapter(load_base(model_args, tokenizer, bool(args.gradient_checkpointing)), model_args, config)
    trainer = _make_trainer(model, tokenizer, splits, probes, args)
    _open_output_dir(trainer, arguments, resume_from)
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        trainer.save_metrics("train", result.metrics)
        trainer.save_model(args.output_dir)
    return _finish(trainer, arguments, config)


def _start_from(arguments: Arguments) -> Path | None:
    args = arguments[2]
    if not args.do_train:
        return None
    with args.main_process_first(desc="looking for a checkpoint"):
        return checkpoints.resume_point(
            Path(args.output_dir), args.resume_from_checkpoint, args.overwrite_output_dir, _trajectory(arguments)
        )


def _trajectory(arguments: Arguments) -> dict[str, Any]:
    model_args, data_args, args = arguments
    chosen = {name: getattr(args, name) for name in _TRAJECTORY if hasattr(args, name)}
    return {**dataclasses.asdict(model_args), **dataclasses.asdict(data_args), **chosen}


def _load_data(tokenizer: Any, config: LoraMoeConfig, data_args: DataArguments, args: TrainArguments) -> Splits:
    with args.main_process_first(desc="reading the data"):
        splits = load_splits(
            tokenizer,
            dataset_dir=data_args.dataset_dir,
            train_file=data_args.train_file,
            validation_file=data_args.validation_file,
            validation_split_percentage=data_args.split_percentage(),
            seed=args.seed,
            template=data_args.prompt_template,
            max_seq_length=data_args.max_seq_length,
            task_types=config.types_of_experts,
            num_proc=data_args.preprocessing_num_workers or 1,
        )
    if args.should_log:
        print(f"training data: {splits.train_report}")
        print(f"validation data: {splits.validation_report or _rows(splits.validation)}")
    return splits


def _rows(rows: Any) -> str:
    return "none" if rows is None else f"{len(rows):,} of the training rows, set aside"


def _make_trainer(
    model: Any, tokenizer: Any, splits: Splits, probes: list[Probe], args: TrainArguments
) -> LoraMoeTrainer:
    args.label_names = ["labels"]
    args.prediction_loss_only = True
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = LoraMoeTrainer(
        model=model,
        args=args,
        tokenizer=tokenizer,
        probes=probes,
        train_dataset=splits.train,
        eval_dataset=splits.validation,
        data_collator=SftCollator(pad),
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


def _open_output_dir(trainer: LoraMoeTrainer, arguments: Arguments, resume_from: Path | None) -> None:
    args = arguments[2]
    output_dir = Path(args.output_dir)
    has_validation = trainer.eval_dataset is not None
    args.do_eval = args.do_eval and has_validation
    args.eval_on_start = args.eval_on_start and args.do_eval and resume_from is None
    if args.should_save and args.do_train:
        output_dir.mkdir(parents=True, exist_ok=True)
        if args.overwrite_output_dir and resume_from is None:
            checkpoints.clear(output_dir)
        checkpoints.write_json(output_dir / checkpoints.ARGUMENTS, _trajectory(arguments))
    if args.should_log:
        trainer.model.print_trainable_parameters()
        if resume_from is not None:
            print(f"resuming from {resume_from}")


def _final_evaluation(trainer: LoraMoeTrainer) -> dict[str, float]:
    """Evaluates, unless the last step of the training has just been evaluated."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    at_last_step = evaluations and evaluations[-1]["step"] == trainer.state.global_step > 0
    if at_last_step and trainer.eval_shares is not None and not trainer.args.load_best_model_at_end:
        return dict(evaluations[-1])
    metrics: dict[str, float] = trainer.evaluate()
    return metrics


def _finish(trainer: LoraMoeTrainer, arguments: Arguments, config: LoraMoeConfig) -> dict[str, dict[str, float]]:
    args = arguments[2]
    output_dir = Path(args.output_dir)
    if args.do_eval:
        trainer.save_metrics("eval", _final_evaluation(trainer))
    trainer.measure_recall()
    trainer.save_state()
    metrics = before_and_after(trainer.state.log_history)
    if args.should_save:
        if trainer.eval_shares is not None:
            write_report(trainer.eval_shares, output_dir, config.blc_target, config.blc_weight)
        checkpoints.write_json(output_dir / checkpoints.METRICS, metrics)
        print(closing_words(arguments, metrics))
    return metrics
