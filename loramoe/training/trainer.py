"""transformers' Trainer with what LoRAMoE adds: routing statistics, loss per task type, atomic saves, recall.

Two private methods are overridden: `_load_best_model` looks for an adapter only at the top of a checkpoint, and
`_save_checkpoint` must begin in an empty folder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from loramoe.analysis import RoutingCollector, RoutingStats, log_values
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import IGNORE_INDEX, PromptFormat, get_template, save_prompt_format
from loramoe.evaluation.recall import Probe, recall
from loramoe.training.callbacks import (
    BeforeFirstStep,
    FiniteGuard,
    NothingLeftError,
    ignore_stop_signals,
    print_totals_only,
)
from loramoe.training.checkpoint import ADAPTER, COMPLETE, KeepCheckpoints, as_save_error, remove_checkpoint
from loramoe.training.distributed import whole_adapter
from loramoe.training.model import check_packing
from loramoe.tuner.hooks import BalanceStats, last_balance
from loramoe.utils import as_usage_error, atomic_save_dir

CHUNK = 512  # positions of which float32 log-probabilities are made at once
LossSums = dict[int | None, tuple[float, int]]


class LoraMoeTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trainer of a PeftModel whose adapter is named `sft_lora_model`.

    With that name the Trainer's own saving and resuming keep the adapter in `checkpoint-N/sft_lora_model/`.

    Args:
        tokenizer: Saved beside each adapter.
        prompt_format: Template, length and names of the task types, saved beside each adapter.
        probes: Facts to ask for when the training begins, and by `measure_recall`.
        on_nonfinite: Whether a loss that is NaN or infinite stops the run, or the batch is skipped.
        learning_rates: Those of the routers (`"router"`) and of B (`"B"`) that differ from learning_rate.
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
        self._train_routing, self._eval_routing = RoutingCollector(), RoutingCollector()
        self.evaluated: dict[str, RoutingCollector] = {}
        self._eval_sums: LossSums = {}
        self._packing_checked = False
        self.guard = FiniteGuard(tokenizer, on_nonfinite, lambda: self.deepspeed if self.is_deepspeed_enabled else None)
        self.add_callback(self.guard)
        self.add_callback(BeforeFirstStep(self.measure_recall))
        self.add_callback(KeepCheckpoints(self.args.save_total_limit))
        self.args.save_total_limit = None
        print_totals_only(self)

    @property
    def eval_routing(self) -> RoutingStats | None:
        """The routing statistics of the last evaluation, over all validation sets."""
        return RoutingCollector.merge(self.evaluated.values()).result()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's; a run that resumes at its last step ends there."""
        try:
            return super().train(*args, **kwargs)
        except NothingLeftError:
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
        kinds = {weight: name.rpartition(".")[2] for name, weight in self.model.named_parameters()}
        if self.learning_rates:
            groups, optimizer.param_groups = optimizer.param_groups, []
            for group in groups:
                weights: dict[float, list[Any]] = {}
                for weight in group["params"]:
                    weights.setdefault(self.learning_rates.get(kinds[weight], group["lr"]), []).append(weight)
                for rate, chosen in weights.items():
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """As the Trainer's; its routing statistics go to the log, or to the evaluation."""
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
            self._train_routing.add(balance)
        elif balance is not None and not training and (real := self._real_samples(len(balance.tokens_M))):
            self._eval_routing.add(first_samples(balance, real))
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
        """How many samples of this process's batch count: accelerate fills up the last batches with repetitions."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return count
        real: int = state.remainder - self.args.process_index * count
        return min(max(real, 0), count)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the loss over all tokens and of each task type, and what the experts did.

        The Trainer's own loss is a mean of batches' means, which changes with the batch size.
        """
        self._eval_sums, self._eval_routing = {}, RoutingCollector()
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        routing = _gather(self._eval_routing)
        if prefix == "eval" or prefix == f"eval_{next(iter(self.eval_dataset))}":  # the first of several sets
            self.evaluated = {}
        self.evaluated[prefix] = routing
        sums = gather_object([self._eval_sums])
        names = {} if self.prompt_format is None else self.prompt_format.type_names
        metrics = {**loss_metrics(sums, names), **_log_values(routing)}
        output.metrics.update({f"{prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, with what the experts did since the last log of the training loss."""
        if "loss" in logs:
            logs |= _log_values(_gather(self._train_routing))
            self._train_routing = RoutingCollector()
            if self.guard.action == "skip":
                logs["skipped"] = sum(gather_object([self.guard.skipped]))
        super().log(logs, *args, **kwargs)

    def measure_recall(self) -> float | None:
        """Asks for all probes, divided among the processes, and logs the share that was recalled."""
        if not self.probes:
            return None
        is_chat = self.prompt_format is not None and self.prompt_format.template == "chat"
        end_ids = get_template("chat", self.tokenizer_to_save).end_ids if is_chat else ()
        indices, progress = list(range(len(self.probes))), self.is_world_process_zero()
        # Padded, so that all processes call the model equally often.
        with PartialState().split_between_processes(indices, apply_padding=True) as mine:
            asked = [self.probes[index] for index in mine]
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


def _gather(collector: RoutingCollector) -> RoutingCollector:
    return RoutingCollector.merge(gather_object([RoutingCollector.merge([collector])]))  # on the CPU, of all processes


def _log_values(collector: RoutingCollector) -> dict[str, float]:
    stats = collector.result()
    return {} if stats is None else log_values(stats)


@torch.no_grad()
def sample_losses(logits_BSV: Tensor, labels_BS: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the learnt tokens, summed by sample."""
    row_K, position_K = (labels_BS[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    samples, sample_K = len(labels_BS), row_K
    if lengths is not None:
        samples = len(lengths)
        ends_M = torch.tensor(lengths, device=labels_BS.device).cumsum(0)
        sample_K = torch.searchsorted(ends_M, position_K + 1, right=True)
    loss_M, tokens_M = torch.zeros(2, samples, dtype=torch.float64)  # on the CPU: MPS has no float64
    for rows, positions, owners in zip(*(torch.split(t, CHUNK) for t in (row_K, position_K, sample_K)), strict=True):
        targets = labels_BS[rows, positions + 1]
        loss = torch.nn.functional.cross_entropy(logits_BSV[rows, positions].float(), targets, reduction="none")
        loss_M.index_add_(0, owners.cpu(), loss.cpu().double())
        tokens_M += torch.bincount(owners.cpu(), minlength=samples)
    return loss_M, tokens_M


def loss_metrics(sums: Sequence[LossSums], type_names: Mapping[int, str]) -> dict[str, float]:
    """Loss and perplexity over all tokens, and of each task type by its name."""
    total: LossSums = {}
    for task_type, (loss, tokens) in (item for part in sums for item in part.items()):
        before = total.get(task_type, (0.0, 0))
        total[task_type] = before[0] + loss, before[1] + tokens
    named = {"": (sum(loss for loss, _ in total.values()), sum(tokens for _, tokens in total.values()))}
    if len(total) > 1:
        named |= {f"/{type_names.get(t, f'type{t}')}": total[t] for t in sorted(t for t in total if t is not None)}
    metrics = {}
    for name, (loss, tokens) in named.items():
        if tokens:
            metrics[f"loss{name}"] = loss / tokens
            metrics[f"perplexity{name}"] = perplexity(loss / tokens)
    return metrics


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def first_samples(balance: BalanceStats, count: int) -> BalanceStats:
    """What the constraint saw of the first samples of a batch."""
    return dataclasses.replace(
        balance,
        importance_LME=balance.importance_LME[:, :count],
        entropy_LM=None if balance.entropy_LM is None else balance.entropy_LM[:, :count],
        tokens_M=balance.tokens_M[:count],
        task_types_M=balance.task_types_M[:count],
    )
