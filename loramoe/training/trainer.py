"""transformers' Trainer, with what LoRAMoE adds to it: expert shares beside the loss, saves that are whole, recall.

Only documented extension points are overridden, but for two. `_load_best_model` looks for an adapter nowhere but at the
top of a checkpoint, and would go on with the last weights after a mere warning. `_save_checkpoint` writes all parts of
a checkpoint, which have to begin in an empty folder and to fail with one voice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from loramoe import last_balance
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import IGNORE_INDEX
from loramoe.recall import Probe, recall
from loramoe.report.live import live_figures
from loramoe.report.shares import ShareMeter, Shares
from loramoe.training.callbacks import FiniteGuard, ignore_stop_signals, print_totals_only
from loramoe.training.checkpoint import ADAPTER, COMPLETE, KeepCheckpoints, as_save_error, remove_checkpoint
from loramoe.training.distributed import whole_adapter
from loramoe.training.packing import check_packing
from loramoe.training.summary import save_results
from loramoe.utils import as_usage_error, atomic_save_dir


class LoraMoeTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trainer of a PeftModel whose adapter is named `sft_lora_model`.

    With that name the Trainer's own saving and resuming keep the adapter in `checkpoint-N/sft_lora_model/`.

    Args:
        tokenizer: Saved beside each adapter.
        probes: Facts to ask for when the training begins, and by `measure_recall`.
        on_nonfinite: What to do about a loss that is NaN or infinite: `"stop"` or `"skip"`, as FiniteGuard has it.
        kwargs: As for Trainer.

    Attributes:
        eval_shares: Which expert served which task type in the last evaluation.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        probes: Sequence[Probe] = (),
        on_nonfinite: Literal["stop", "skip"] = "stop",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer_to_save = tokenizer
        self.probes = probes
        self.eval_shares: Shares | None = None
        self._meters = {"train": ShareMeter(), "eval": ShareMeter()}
        self._eval_sums = torch.zeros(2, dtype=torch.float64)  # Σ tokens · loss, Σ tokens
        self._packing_checked = False
        self.guard = FiniteGuard(tokenizer, on_nonfinite, lambda: self.deepspeed if self.is_deepspeed_enabled else None)
        self.add_callback(self.guard)
        self.add_callback(_EndAtTheEnd())
        self.add_callback(KeepCheckpoints(self.args.save_total_limit))
        self.args.save_total_limit = None
        print_totals_only(self)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's, but for a checkpoint of the last step: the Trainer would go one step beyond it."""
        try:
            return super().train(*args, **kwargs)
        except _NothingLeftError:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return TrainOutput(self.state.global_step, 0.0, {})

    def get_train_dataloader(self) -> Any:
        """As the Trainer's; its workers leave signals to stop to the process that trains."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = partial(ignore_stop_signals, loader.worker_init_fn)
        return loader

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """As the Trainer's; the batch's balance goes into the meter of the logging window, or of the evaluation."""
        if "cu_seq_lens_q" in inputs and not self._packing_checked:  # here the model is on its device, and wrapped
            with as_usage_error(ValueError):
                check_packing(model, self.model.config, inputs["input_ids"].device)
            self._packing_checked = True
        training = self.model.training  # DeepSpeed's engine, which is given, says True in evaluation too
        if training:
            result = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
            self.guard.check_loss(result[0] if return_outputs else result, inputs, self.args, self.state)
        else:
            result = self._evaluation_loss(model, inputs, return_outputs)
        balance = last_balance(model)
        if balance is not None and not (training and self.guard.skips):
            self._meters["train" if training else "eval"].add(balance)
        return result

    def _evaluation_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """The language model's own: the Trainer's would be smoothed, and a share of a step."""
        outputs = model(**inputs)
        tokens = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()  # the first token is never predicted
        self._eval_sums = self._eval_sums + torch.stack([outputs.loss.detach().double() * tokens, tokens]).cpu()
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with what the experts did since the last log, and the perplexity.

        `eval_loss` becomes the mean over all tokens. The Trainer's own is a mean of batches' means, which changes with
        the batch size.
        """
        if "eval_loss" in logs:
            logs["eval_loss"] = self._take_eval_loss()
            logs["eval_perplexity"] = perplexity(logs["eval_loss"])
            self.eval_shares = self._take("eval")
            logs |= {f"eval_{name}": value for name, value in _figures(self.eval_shares).items()}
        elif "loss" in logs:
            logs |= _figures(self._take("train"))
            if self.guard.action == "skip":
                logs["skipped"] = sum(gather_object([self.guard.skipped]))
        super().log(logs, *args, **kwargs)

    def _take(self, which: str) -> Shares | None:
        meter, self._meters[which] = self._meters[which].on_cpu(), ShareMeter()
        return ShareMeter.sum(gather_object([meter])).result()

    def _take_eval_loss(self) -> float:
        everyone = gather_object([self._eval_sums.tolist()])
        self._eval_sums = torch.zeros(2, dtype=torch.float64)
        loss: float = sum(loss for loss, _ in everyone) / sum(tokens for _, tokens in everyone)
        return loss

    def measure_recall(self) -> float | None:
        """Asks for all probes, divided among the processes, and logs the share that was recalled.

        Returns:
            The share, or None without probes.
        """
        if not self.probes:
            return None
        mine = turns(len(self.probes), self.args.process_index, self.args.world_size)
        asked = [self.probes[index] for index in mine]
        hits = recall(self.model, self.tokenizer_to_save, asked, progress=self.is_world_process_zero())
        everyone = dict(gather_object(list(zip(mine, hits, strict=True))))
        share: float = sum(everyone.values()) / len(self.probes)
        self.log({"recall": share})
        return share

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, into an empty folder, and with an error that says what is left if it fails."""
        output_dir = Path(self.args.output_dir)
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        with as_save_error(folder):
            if self.args.should_save and folder.is_dir():  # of a run that was cut off here: its files must not stay
                remove_checkpoint(folder)
            PartialState().wait_for_everyone()
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the adapter with the tokenizer in `output_dir/sft_lora_model/`, whole or not at all."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            (folder / COMPLETE).unlink(missing_ok=True)
        if self.is_deepspeed_enabled:
            self.deepspeed.empty_partition_cache()  # ZeRO-3 may hold weights that it has fetched in advance
        with atomic_save_dir(folder, writer=self.args.should_save) as draft:
            adapter = whole_adapter(self.model, keep=self.args.should_save)  # all processes: each may hold a part
            if self.args.should_save:
                self.model.save_pretrained(str(draft), state_dict=adapter)
                save_tokenizer(self.tokenizer_to_save, draft / ADAPTER)
                (draft / "README.md").unlink(missing_ok=True)  # a form to fill in; loramoe.report.card writes the card

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """As the Trainer's, but for files that are whole or not there: the Trainer reads what a killed run left."""
        if self.is_world_process_zero():
            save_results(Path(self.args.output_dir), split, metrics, combined)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self.model.load_adapter(str(Path(self.state.best_model_checkpoint) / ADAPTER), ADAPTER)


class _NothingLeftError(Exception):
    """The checkpoint that a run resumes from is that of its last step."""


class _EndAtTheEnd(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Looks, before an epoch is begun, whether there is anything left to do; the Trainer looks after each step only."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Runs when an epoch begins, or goes on after an interruption."""
        if state.global_step >= state.max_steps:
            raise _NothingLeftError


def turns(count: int, rank: int, world_size: int) -> list[int]:
    """Divides things among processes, equally many for each, for where all have to call the model equally often.

    Args:
        count: How many things there are.
        rank: Which process asks.
        world_size: How many processes there are.

    Returns:
        Indices of this process's things; the last processes repeat some that others have.
    """
    rounds = math.ceil(count / world_size)
    return [index % count for index in range(rank, rounds * world_size, world_size)]


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _figures(shares: Shares | None) -> dict[str, float]:
    return {} if shares is None else live_figures(shares)
