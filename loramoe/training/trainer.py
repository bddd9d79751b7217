"""transformers' Trainer with what LoRAMoE adds: routing statistics, loss per task type, atomic saves, recall.

Two private methods are overridden: `_load_best_model` looks for an adapter only at the top of a checkpoint, and
`_save_checkpoint` must begin in an empty folder, and end with the marker of a complete checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from loramoe.analysis import RoutingCollector, RoutingStats, log_values
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import IGNORE_INDEX, get_template, save_prompt_format
from loramoe.evaluation.recall import recall
from loramoe.training import callbacks, checkpoint
from loramoe.training.distributed import whole_adapter
from loramoe.training.model import check_packing
from loramoe.training.prepare import Prepared
from loramoe.tuner.hooks import last_balance
from loramoe.utils import as_usage_error, atomic_save_dir

LossSums = dict[int | None, Tensor]  # of each task type: sum of the loss, and number of tokens; None: without a type


class LoraMoeTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """Trainer of a PeftModel whose adapter is named `sft_lora_model`.

    With that name the Trainer's own saving and resuming keep the adapter in `checkpoint-N/sft_lora_model/`.

    Args:
        prepared: The run: its flags, data, tokenizer and facts to ask for.
        model: The model.
        kwargs: Further ones of Trainer.
    """

    def __init__(self, prepared: Prepared, model: Any, **kwargs: Any) -> None:
        args, validation = prepared.arguments.training, prepared.splits.validation
        args.label_names = ["labels"]
        args.prediction_loss_only = kwargs.get("compute_metrics") is None
        # The Trainer would remove an old checkpoint before the new one is complete.
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model,
            args,
            train_dataset=prepared.splits.train,
            eval_dataset=(next(iter(validation.values())) if len(validation) == 1 else validation) or None,
            data_collator=prepared.collator,
            **kwargs,
        )
        self.prepared = prepared
        self._train_routing, self._eval_routing = RoutingCollector(), RoutingCollector()
        self.evaluated: dict[str, RoutingCollector] = {}
        self._eval_sums: LossSums = {}
        self._packing_checked = False
        self.guard = callbacks.FiniteGuard(prepared.tokenizer, args.on_nonfinite, lambda: vars(self).get("deepspeed"))
        self.add_callback(self.guard)
        self.add_callback(callbacks.BeforeFirstStep(self.measure_recall))
        callbacks.print_totals_only(self)

    @property
    def eval_routing(self) -> RoutingStats | None:
        """The routing statistics of the last evaluation, over all validation sets."""
        return RoutingCollector.merge(self.evaluated.values()).result()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's; a run that resumes at its last step ends there."""
        try:
            return super().train(*args, **kwargs)
        except callbacks.NothingLeftError:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            return TrainOutput(self.state.global_step, 0.0, {})

    def get_train_dataloader(self) -> Any:
        """As the Trainer's; its workers leave signals to stop to the process that trains."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = partial(callbacks.ignore_stop_signals, loader.worker_init_fn)
        return loader

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the learning rates of the routers and of B (LoRA+, arXiv 2402.12354)."""
        optimizer = super().create_optimizer(*args, **kwargs)
        of_b = self.args.loraplus_lr_ratio and self.args.loraplus_lr_ratio * self.args.learning_rate
        rates = {"router": self.args.router_learning_rate, "B": of_b}
        if any(rates.values()):
            kinds = {weight: name.rpartition(".")[2] for name, weight in self.model.named_parameters()}
            groups, optimizer.param_groups = optimizer.param_groups, []
            for group in groups:
                weights: dict[float, list[Any]] = {}
                for weight in group["params"]:
                    weights.setdefault(rates.get(kinds[weight]) or group["lr"], []).append(weight)
                for rate, chosen in weights.items():
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """As the Trainer's; its routing statistics go to the log, or to the evaluation."""
        if "cu_seq_lens_q" in inputs and not self._packing_checked:  # here the model is on its device, and wrapped
            with as_usage_error(ValueError):
                check_packing(model, self.model.config, inputs["input_ids"].device)
            self._packing_checked = True
        if not self.model.training:  # DeepSpeed's engine, which is given, says True in evaluation too
            return self._evaluation_loss(model, inputs, return_outputs)
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        self.guard.check_loss(result[0] if return_outputs else result, inputs, self.args, self.state)
        balance = last_balance(model)
        self._train_routing.add(None if self.guard.skips else balance)
        return result

    def _evaluation_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """The language model's own loss, summed by sample: the Trainer's would be smoothed, and a share of a step."""
        # The Trainer has Liger leave the logits out, which are needed here.
        outputs = model(**{name: value for name, value in inputs.items() if name not in ("labels", "skip_logits")})
        sums_M2 = sample_losses(outputs.logits, inputs["labels"], inputs.get("sample_lengths"))
        real = self._real_samples(len(sums_M2))
        types = inputs["task_types"].tolist() if "task_types" in inputs else [None] * len(sums_M2)
        _add_sums(self._eval_sums, zip(types[:real], sums_M2, strict=False))
        balance = last_balance(model)
        if balance is not None and real:
            tokens_M = balance.tokens_M.clone()
            tokens_M[real:] = 0  # samples without tokens do not count
            self._eval_routing.add(dataclasses.replace(balance, tokens_M=tokens_M))
        loss, tokens = sums_M2.sum(dim=0)
        mean = (loss / tokens.clamp(min=1)).float().to(outputs.logits.device)  # where processes gather it
        return (mean, outputs) if return_outputs else mean

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
        self.evaluated[prefix] = routing = _gather(self._eval_routing)
        names = self.prepared.prompt_format.type_names
        metrics = {**loss_metrics(gather_object([self._eval_sums]), names), **_log_values(routing)}
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
        probes, tokenizer = self.prepared.probes, self.prepared.tokenizer
        if not probes:
            return None
        is_chat = self.prepared.prompt_format.template == "chat"
        end_ids = get_template("chat", tokenizer).end_ids if is_chat else ()
        # Padded, so that all processes call the model equally often.
        with PartialState().split_between_processes(list(range(len(probes))), apply_padding=True) as mine:
            asked = [probes[index] for index in mine]
            hits = recall(self.model, tokenizer, asked, progress=self.is_world_process_zero(), end_ids=end_ids)
        everyone = dict(gather_object(list(zip(mine, hits, strict=True))))
        share: float = sum(everyone.values()) / len(probes)
        self.log({"recall": share})
        return share

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, complete or ignored; only then the oldest checkpoints are removed."""
        folder, processes = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", PartialState()
        with checkpoint.as_save_error(folder):
            if self.args.should_save and folder.is_dir():  # of a run that was killed here: its files must not stay
                checkpoint.remove_checkpoint(folder)
            processes.wait_for_everyone()
            super()._save_checkpoint(*args, **kwargs)
            processes.wait_for_everyone()
            if self.args.should_save:
                checkpoint.mark_complete(folder)
                keep = {folder.name, Path(self.state.best_model_checkpoint or "").name}
                checkpoint.remove_oldest(folder.parent, self._save_total_limit, keep)
        processes.wait_for_everyone()  # if a process ended now, the launcher would stop the one that writes

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the adapter, tokenizer and prompt format in `output_dir/sft_lora_model/`, whole or not at all."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            (folder / checkpoint.COMPLETE).unlink(missing_ok=True)
        if self.is_deepspeed_enabled:
            self.deepspeed.empty_partition_cache()  # ZeRO-3 may hold weights that it has fetched in advance
        with atomic_save_dir(folder, writer=self.args.should_save) as draft:
            adapter = whole_adapter(self.model, keep=self.args.should_save)  # all processes: each may hold a part
            if self.args.should_save:
                self.model.save_pretrained(str(draft), state_dict=adapter)
                save_tokenizer(self.prepared.tokenizer, draft / checkpoint.ADAPTER)
                save_prompt_format(draft / checkpoint.ADAPTER, self.prepared.prompt_format)
                (draft / "README.md").unlink(missing_ok=True)  # a form to fill in; the run writes its own card

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            folder = Path(self.state.best_model_checkpoint) / checkpoint.ADAPTER
            self.model.load_adapter(str(folder), checkpoint.ADAPTER)


def _gather(collector: RoutingCollector) -> RoutingCollector:
    return RoutingCollector.merge(gather_object([RoutingCollector.merge([collector])]))  # on the CPU, of all processes


def _log_values(collector: RoutingCollector) -> dict[str, float]:
    stats = collector.result()
    return {} if stats is None else log_values(stats)


@torch.no_grad()
def sample_losses(logits_BSV: Tensor, labels_BS: Tensor, lengths: list[int] | None = None) -> Tensor:
    """Sum of the cross-entropy, and number of learnt tokens, of each sample: [M, 2], float64 on the CPU."""
    logits_M, labels_M = list(logits_BSV), list(labels_BS)
    if lengths is not None:  # packed: all samples stand in one row
        logits_M, labels_M = (list(torch.split(row[0], lengths)) for row in (logits_BSV, labels_BS))
    sums = []
    for logits_SV, labels_S in zip(logits_M, labels_M, strict=True):
        learnt_S = labels_S[1:] != IGNORE_INDEX
        targets = labels_S[1:][learnt_S]
        loss = torch.nn.functional.cross_entropy(logits_SV[:-1][learnt_S].float(), targets, reduction="none")
        sums.append(torch.stack([loss.cpu().double().sum(), torch.tensor(float(len(targets))).double()]))
    return torch.stack(sums)


def _add_sums(total: LossSums, new: Any) -> None:
    for task_type, pair in new:
        total[task_type] = total.get(task_type, torch.zeros(2, dtype=torch.float64)) + pair


def loss_metrics(sums: Sequence[LossSums], type_names: Mapping[int, str]) -> dict[str, float]:
    """Loss and perplexity over all tokens, and of each task type by its name."""
    total: LossSums = {}
    for part in sums:
        _add_sums(total, part.items())
    named = {"": sum(total.values(), torch.zeros(2, dtype=torch.float64))}
    if len(total) > 1:
        known = sorted(task_type for task_type in total if task_type is not None)
        named |= {f"/{type_names.get(task_type, f'type{task_type}')}": total[task_type] for task_type in known}
    metrics: dict[str, float] = {}
    for name, (loss, tokens) in named.items():
        if tokens:
            mean = loss / tokens
            metrics |= {f"loss{name}": float(mean), f"perplexity{name}": float(mean.exp())}  # infinite if too large
    return metrics
