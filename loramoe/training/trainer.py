"""transformers' Trainer with what LoRAMoE adds: expert shares, loss per task type, atomic saves, recall.

Only documented extension points are overridden, but for two. `_load_best_model` looks for an adapter at the top of a
checkpoint only. `_save_checkpoint` writes all parts of a checkpoint, which must begin in an empty folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import PromptFormat, get_template, save_prompt_format
from loramoe.evaluation.recall import Probe, recall
from loramoe.report.live import live_figures
from loramoe.report.shares import ShareMeter, Shares
from loramoe.training.callbacks import FiniteGuard, ignore_stop_signals, print_totals_only
from loramoe.training.checkpoint import ADAPTER, COMPLETE, KeepCheckpoints, as_save_error, remove_checkpoint
from loramoe.training.distributed import whole_adapter
from loramoe.training.metrics import LossSums, first_samples, loss_metrics, sample_losses
from loramoe.training.packing import check_packing
from loramoe.tuner.hooks import last_balance
from loramoe.utils import as_usage_error, atomic_save_dir


class LoraMoeTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trainer of a PeftModel whose adapter is named `sft_lora_model`.

    With that name the Trainer's own saving and resuming keep the adapter in `checkpoint-N/sft_lora_model/`.

    Args:
        tokenizer: Saved beside each adapter.
        prompt_format: Template, length and names of the task types, saved beside each adapter.
        probes: Facts to ask for when the training begins, and by `measure_recall`.
        on_nonfinite: What to do about a loss that is NaN or infinite: `"stop"` or `"skip"`, as FiniteGuard has it.
        learning_rates: Learning rates of the routers (`"router"`) and of B (`"B"`) that differ from learning_rate.
        kwargs: As for Trainer.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        prompt_format: PromptFormat | None = None,
        probes: Sequence[Probe] = (),
        on_nonfinite: Literal["stop", "skip"] = "stop",
        learning_rates: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokenizer_to_save, self.prompt_format, self.probes = tokenizer, prompt_format, probes
        self.learning_rates = learning_rates or {}
        self._train_meter, self._eval_meter = ShareMeter(), ShareMeter()
        self._evaluated: dict[str, ShareMeter] = {}
        self._eval_sums: LossSums = {}
        self._packing_checked = False
        self.guard = FiniteGuard(tokenizer, on_nonfinite, lambda: self.deepspeed if self.is_deepspeed_enabled else None)
        self.add_callback(self.guard)
        self.add_callback(_EndAtTheEnd())
        self.add_callback(KeepCheckpoints(self.args.save_total_limit))
        self.args.save_total_limit = None
        print_totals_only(self)

    @property
    def eval_shares(self) -> Shares | None:
        """Which expert served which task type in the last evaluation, over all validation sets."""
        return ShareMeter.sum(self._evaluated.values()).result()

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

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the learning rates of the routers and of B (LoRA+, arXiv 2402.12354)."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not self.learning_rates:
            return optimizer
        kinds = {weight: name.rpartition(".")[2] for name, weight in self.model.named_parameters()}
        groups, optimizer.param_groups = optimizer.param_groups, []
        for group in groups:
            for kind in ("router", "B", None):
                chosen = [w for w in group["params"] if (kinds[w] if kinds[w] in self.learning_rates else None) == kind]
                if chosen:
                    rate = self.learning_rates.get(kind or "", group["lr"])
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

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
        if balance is not None and training and not self.guard.skips:
            self._train_meter.add(balance)
        elif balance is not None and not training and (real := self._real_samples(len(balance.tokens_M))):
            self._eval_meter.add(first_samples(balance, real))
        return result

    def _evaluation_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """The language model's own loss, summed by sample: the Trainer's would be smoothed, and a share of a step."""
        # The Trainer has Liger leave the logits out, which are needed here.
        outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", "skip_logits")})
        loss_M, tokens_M = sample_losses(outputs.logits, inputs["labels"], inputs.get("sample_lengths"))
        types = inputs["task_types"].tolist() if "task_types" in inputs else [None] * len(loss_M)
        real = self._real_samples(len(types))
        for task_type, loss, tokens in zip(types[:real], loss_M.tolist(), tokens_M.tolist(), strict=False):
            before = self._eval_sums.get(task_type, (0.0, 0))
            self._eval_sums[task_type] = before[0] + loss, before[1] + int(tokens)
        loss = (loss_M.sum() / tokens_M.sum().clamp(min=1)).float()
        return (loss, outputs) if return_outputs else loss

    def _real_samples(self, count: int) -> int:
        """How many samples of this process's batch are no repetitions, with which accelerate fills the last batches."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return count
        real: int = state.remainder - self.args.process_index * count
        return min(max(real, 0), count)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the loss over all tokens and of each task type, and what the experts did.

        The Trainer's own loss is a mean of batches' means, which changes with the batch size.
        """
        self._eval_sums, self._eval_meter = {}, ShareMeter()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        meter = ShareMeter.sum(gather_object([self._eval_meter.on_cpu()]))
        if prefix in ("eval", self._first_prefix()):
            self._evaluated = {}
        self._evaluated[prefix] = meter
        sums = gather_object([self._eval_sums])
        metrics = {**loss_metrics(sums, self._type_names()), **_figures(meter.result())}
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _first_prefix(self) -> str:
        return f"eval_{next(iter(self.eval_dataset))}" if isinstance(self.eval_dataset, dict) else "eval"

    def _type_names(self) -> dict[int, str]:
        return {} if self.prompt_format is None else self.prompt_format.type_names

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with what the experts did since the last log of the training loss."""
        if "loss" in logs:
            meter, self._train_meter = self._train_meter.on_cpu(), ShareMeter()
            logs |= _figures(ShareMeter.sum(gather_object([meter])).result())
            if self.guard.action == "skip":
                logs["skipped"] = sum(gather_object([self.guard.skipped]))
        super().log(logs, *args, **kwargs)

    def measure_recall(self) -> float | None:
        """Asks for all probes, divided among the processes, and logs the share that was recalled."""
        if not self.probes:
            return None
        mine = assign(len(self.probes), self.args.process_index, self.args.world_size)
        asked = [self.probes[index] for index in mine]
        is_chat = self.prompt_format is not None and self.prompt_format.template == "chat"
        end_ids = get_template("chat", self.tokenizer_to_save).end_ids if is_chat else ()
        progress = self.is_world_process_zero()
        hits = recall(self.model, self.tokenizer_to_save, asked, progress=progress, end_ids=end_ids)
        everyone = dict(gather_object(list(zip(mine, hits, strict=True))))
        share: float = sum(everyone.values()) / len(self.probes)
        self.log({"recall": share})
        return share

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, into an empty folder, and with an error that says what is left if it fails."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with as_save_error(folder):
            if self.args.should_save and folder.is_dir():  # of a run that was killed here: its files must not stay
                remove_checkpoint(folder)
            PartialState().wait_for_everyone()
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the adapter, tokenizer and prompt format in `output_dir/sft_lora_model/`, whole or not at all."""
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
                if self.prompt_format is not None:
                    save_prompt_format(draft / ADAPTER, self.prompt_format)
                (draft / "README.md").unlink(missing_ok=True)  # a form to fill in; the run writes its own card

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self.model.load_adapter(str(Path(self.state.best_model_checkpoint) / ADAPTER), ADAPTER)


class _NothingLeftError(Exception):
    """The checkpoint that a run resumes from is that of its last step."""


class _EndAtTheEnd(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Ends a resumed run that has nothing left to do before it begins an epoch; the Trainer looks after steps only."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            raise _NothingLeftError


def assign(count: int, rank: int, world_size: int) -> list[int]:
    """Divides things among processes, equally many for each, where all have to call the model equally often."""
    rounds = math.ceil(count / world_size)
    return [index % count for index in range(rank, rounds * world_size, world_size)]


def _figures(shares: Shares | None) -> dict[str, float]:
    return {} if shares is None else live_figures(shares)
