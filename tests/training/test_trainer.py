"""What is logged beside the loss equals a computation by hand, and what is saved is whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import SftCollator, tokenise_dataset
from loramoe.training import LoraMoeTrainer
from loramoe.training import trainer as trainer_module
from loramoe.training.checkpoint import ADAPTER, METRICS
from loramoe.training.trainer import loss_metrics, sample_losses
from tests.training.conftest import Finished, history, weights


def shares_by_hand(balances: list[Any]) -> dict[str, float]:
    """Constraint and group shares, token by token, in Python numbers."""
    weights, tokens = {}, {}
    for balance in balances:
        for t, task_type in enumerate(balance.task_types):
            count = balance.tokens_T[t].item()
            tokens[task_type] = tokens.get(task_type, 0.0) + count
            for linear in balance.gate_TLE[t].tolist():
                for gate, group in zip(linear, balance.expert_types, strict=True):
                    key = (task_type, group)
                    weights[key] = weights.get(key, 0.0) + count * gate / len(balance.layers)
    shares = {f"share/type{t}/group{g}": weight / tokens[t] for (t, g), weight in weights.items()}
    return {"blc": sum(b.constraint.item() for b in balances) / len(balances), "cov": cov_by_hand(balances), **shares}


def cov_by_hand(balances: list[Any]) -> float:
    """Mean over the linear layers of the coefficient of variation of what each expert got of all tokens."""
    of_layers = []
    for layer in range(len(balances[0].layers)):
        importance = [0.0] * len(balances[0].expert_types)
        for balance in balances:
            for gates, tokens in zip(balance.gate_TLE[:, layer].tolist(), balance.tokens_T.tolist(), strict=True):
                importance = [sum_ + tokens * gate for sum_, gate in zip(importance, gates, strict=True)]
        of_layers.append(stdev(importance) / mean(importance))
    return mean(of_layers)


def test_logged_values_are_those_of_the_window(finished: Finished):
    windows = [entry for entry in history(finished.folder) if "loss" in entry]
    in_training = [balance for training, balance in finished.balances if training]
    assert (len(windows), len(in_training)) == (3, 15)
    for place, entry in enumerate(windows):
        logged = {name: value for name, value in entry.items() if name in ("blc", "cov") or name.startswith("share/")}
        assert logged == pytest.approx(shares_by_hand(in_training[5 * place : 5 * place + 5]), rel=1e-6)
        assert len(logged) == 6
    evaluated = [entry for entry in history(finished.folder) if "eval_loss" in entry][-1]
    figures = ("eval_share", "eval_blc", "eval_cov")
    of_eval = {name[len("eval_") :]: v for name, v in evaluated.items() if name.startswith(figures)}
    batches = [balance for training, balance in finished.balances if not training][-3:]  # of 5, 5 and 2 samples
    assert of_eval == pytest.approx(shares_by_hand(batches), rel=1e-6)


def test_evaluation_loss_is_the_language_models_alone(finished: Finished, tiny_task, own_dataset_cache: None):
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    model = PeftModel.from_pretrained(base, finished.folder / ADAPTER).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.folder / ADAPTER)
    samples, _ = tokenise_dataset(tiny_task.test_file, tokenizer, max_seq_length=32, cache_dir=tiny_task.cache)
    batch = SftCollator(tokenizer.pad_token_id)(list(samples))  # the run had batches of 5
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    after = finished.metrics["after"]
    for name, chosen in {"": [0, 1], "/tasks": [0], "/knowledge": [1]}.items():
        chosen_M = torch.isin(batch["task_types"], torch.tensor(chosen))
        labels = batch["labels"][chosen_M, 1:].flatten()
        expected = torch.nn.functional.cross_entropy(logits[chosen_M].flatten(0, 1), labels).item()
        assert after[f"loss{name}"] == pytest.approx(expected, rel=1e-6)
        assert after[f"perplexity{name}"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert after["loss"] < finished.metrics["before"]["loss"]


def test_evaluation_is_never_smoothed(finished: Finished, train, tmp_path: Path):
    smoothed = train(tmp_path, max_steps=1, label_smoothing_factor=0.2)
    assert smoothed["before"]["loss"] == pytest.approx(finished.metrics["before"]["loss"], rel=1e-6)


def test_without_validation_samples_nothing_is_evaluated(train, tmp_path: Path):
    none = {"validation_file": None, "validation_split_percentage": 0}
    metrics = train(tmp_path, **none, eval_strategy="steps", eval_steps=1, max_steps=1)
    assert metrics == {"before": {}, "after": {}}
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").is_file()


def test_checkpoints_hold_the_adapter_and_not_the_base(finished: Finished):
    assert json.loads((finished.folder / METRICS).read_text()) == finished.metrics
    assert finished.metrics["before"].keys() == finished.metrics["after"].keys() >= {"loss", "recall", "loss/knowledge"}
    saved = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    for folder in ("", "checkpoint-5/", "checkpoint-15/"):
        adapter = {Path(name).name for name in saved if name.startswith(f"{folder}{ADAPTER}/")}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "loramoe_prompt.json"} <= adapter
    assert {"checkpoint-5/complete", "checkpoint-5/optimizer.pt", METRICS, "all_results.json"} <= saved
    assert [name for name in saved if Path(name).name in ("model.safetensors", "README.md")] == [f"{ADAPTER}/README.md"]
    assert not [name for name in saved if "incomplete" in name or name.endswith(".old")]
    everything = torch.load(finished.folder / "checkpoint-5" / "optimizer.pt", weights_only=True)["state"]
    assert len(everything) == len(weights(finished.folder)) == 2 * 3 * 3


def test_the_best_checkpoint_is_the_one_kept(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = {0: 3.0, 2: 1.0, 4: 2.0, 6: 3.0}
    evaluate = LoraMoeTrainer.evaluation_loop

    def evaluation_loop(self: LoraMoeTrainer, *args: object, **kwargs: object) -> object:
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses[self.state.global_step]
        return output

    monkeypatch.setattr(LoraMoeTrainer, "evaluation_loop", evaluation_loop)
    flags = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    flags["load_best_model_at_end"] = "true"
    train(tmp_path, **flags)
    best, last, final = (
        (tmp_path / of / ADAPTER / "adapter_model.safetensors").read_bytes()
        for of in ("checkpoint-2", "checkpoint-6", "")
    )
    assert final == best != last
    assert not (tmp_path / "checkpoint-4").exists()
    (tmp_path / METRICS).unlink()  # as if killed at the end: a run resumed at its last step ends likewise
    (tmp_path / ADAPTER / "adapter_model.safetensors").unlink()
    train(tmp_path, **flags)
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").read_bytes() == best


def test_probes_that_processes_repeat_count_once(train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def recall(model: torch.nn.Module, tokenizer: object, probes: list, **options: object) -> list[bool]:
        asked.append(len(probes))
        return [len(asked) > 1 or place == 0 for place in range(len(probes))]

    split = PartialState.split_between_processes
    monkeypatch.setattr(trainer_module, "recall", recall)
    monkeypatch.setattr(
        PartialState, "split_between_processes", lambda self, of, **options: split(self, [*of, of[-1], of[-1]])
    )
    metrics = train(tmp_path, recall_file=tiny_task.recall_file, max_steps=1)
    assert asked == [8, 8]
    assert (metrics["before"]["recall"], metrics["after"]["recall"]) == (pytest.approx(1 / 6), 1)


def test_several_validation_sets_have_losses_of_their_own(train, tiny_task, tmp_path: Path):
    samples = json.loads(tiny_task.test_file.read_text())
    sets = [{"path": str(tmp_path / f"{name}.json"), "name": name} for name in ("easy", "hard")]
    for one, part in zip(sets, (samples[:6], samples[6:]), strict=True):
        Path(one["path"]).write_text(json.dumps(part))
    mix = {"datasets": [{"path": str(tiny_task.train_dir)}], "validation": sets}
    (tmp_path / "mix.yaml").write_text(json.dumps(mix))
    flags = {"dataset_dir": None, "validation_file": None, "datasets": tmp_path / "mix.yaml", "max_steps": 2}
    flags |= {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": "true"}
    metrics = train(tmp_path / "two", **flags, metric_for_best_model="hard_loss/tasks")
    assert {"easy_loss", "hard_loss", "easy_loss/knowledge", "hard_perplexity/tasks"} <= metrics["after"].keys()
    logged = [e["eval_hard_loss/tasks"] for e in history(tmp_path / "two") if "eval_hard_loss/tasks" in e]
    assert metrics["after"]["hard_loss/tasks"] == pytest.approx(min(logged[1:]))


def test_learning_rates_of_the_router_and_of_b(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, float]] = []
    create = LoraMoeTrainer.create_optimizer

    def create_optimizer(self: LoraMoeTrainer, *args: object) -> object:
        optimizer = create(self, *args)
        names = {weight: name.rpartition(".")[2] for name, weight in self.model.named_parameters()}
        seen.append({names[w]: group["lr"] for group in optimizer.param_groups for w in group["params"]})
        return optimizer

    monkeypatch.setattr(LoraMoeTrainer, "create_optimizer", create_optimizer)
    train(tmp_path, max_steps=1, learning_rate=0.01, router_learning_rate=0.001, loraplus_lr_ratio=16)
    assert seen[0] == {"A": 0.01, "B": 0.16, "router": 0.001}


def test_repeated_samples_of_the_last_batch_do_not_count():
    """As in a second process, whose part of the last batch repeats samples of others."""
    for rank, real in ((0, 8), (1, 3), (2, 0)):
        state = type("State", (), {"end_of_dataloader": True, "remainder": 11})
        args = type("Args", (), {"world_size": 3, "process_index": rank})
        trainer = type("Trainer", (), {"args": args, "accelerator": type("A", (), {"gradient_state": state})})
        assert LoraMoeTrainer._real_samples(trainer, 8) == real


def by_hand(logits: torch.Tensor, labels: list[int]) -> tuple[float, int]:
    """Sum over the learnt tokens of -log softmax, in Python numbers."""
    total, count = 0.0, 0
    for row, label in zip(logits.double()[:-1].tolist(), labels[1:], strict=True):
        if label != -100:
            total += math.log(sum(math.exp(value) for value in row)) - row[label]
            count += 1
    return total, count


SAMPLES = ([-100, 3, 1], [-100, -100, 2, 4, 4], [-100, 0])


def test_padded_and_packed_samples():
    torch.manual_seed(0)
    logits = [torch.randn(len(labels), 7) for labels in SAMPLES]
    expected = [by_hand(row, labels) for row, labels in zip(logits, SAMPLES, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True)
    labels = torch.tensor([row + [-100] * (5 - len(row)) for row in SAMPLES])
    packed = torch.tensor([[label for row in SAMPLES for label in row]])
    lengths = [len(row) for row in SAMPLES]
    for sums_M2 in (sample_losses(padded, labels), sample_losses(torch.cat(logits)[None], packed, lengths)):
        assert sums_M2.tolist() == [pytest.approx(pair, rel=1e-6) for pair in expected]


def sums(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_metrics_are_over_all_tokens_of_all_processes():
    metrics = loss_metrics([{0: sums(6, 3), 1: sums(1, 2)}, {1: sums(3, 2)}], {1: "knowledge"})
    assert metrics["loss"] == pytest.approx(10 / 7)
    assert metrics["loss/type0"] == pytest.approx(2.0)
    assert metrics["loss/knowledge"] == pytest.approx(1.0)
    assert metrics["perplexity/knowledge"] == pytest.approx(math.e)
    assert loss_metrics([{1: sums(2, 2)}], {}) == {"loss": 1.0, "perplexity": math.e}  # one type has no part
    assert loss_metrics([{1: sums(1e4, 1)}], {})["perplexity"] == math.inf
    assert loss_metrics([{}], {}) == {}
