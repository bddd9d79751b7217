"""What is logged beside the loss equals a computation by hand, and what is saved is whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import loramoe
from loramoe.data import SftCollator, tokenise_dataset
from loramoe.training import trainer as trainer_module
from loramoe.training.checkpoint import ADAPTER, METRICS
from loramoe.training.trainer import LoraMoeTrainer, assign
from loramoe.utils import UsageError


@pytest.fixture
def balances(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, loramoe.Balance]]:
    """Every balance that the trainer reads, with whether the model was in training."""
    seen = []

    def read(model: torch.nn.Module) -> loramoe.Balance | None:
        balance = loramoe.last_balance(model)
        seen.append((model.training, balance))
        return balance

    monkeypatch.setattr(trainer_module, "last_balance", read)
    return seen


def shares_by_hand(balances: list[loramoe.Balance]) -> dict[str, float]:
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


def cov_by_hand(balances: list[loramoe.Balance]) -> float:
    """Mean over the linears of the coefficient of variation of what each expert got of all tokens."""
    of_linears = []
    for linear in range(len(balances[0].layers)):
        importance = [0.0] * len(balances[0].expert_types)
        for balance in balances:
            for gates, tokens in zip(balance.gate_TLE[:, linear].tolist(), balance.tokens_T.tolist(), strict=True):
                importance = [sum_ + tokens * gate for sum_, gate in zip(importance, gates, strict=True)]
        of_linears.append(stdev(importance) / mean(importance))
    return mean(of_linears)


def test_logged_values_are_those_of_the_window(train, balances, tmp_path: Path):
    train(tmp_path, max_steps=4, logging_steps=2, gradient_accumulation_steps=2, eval_on_start="false")
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    windows = [entry for entry in history if "loss" in entry]
    in_training = [balance for training, balance in balances if training]
    assert len(windows) == 2
    assert len(in_training) == 8
    for entry, expected in zip(windows, (in_training[:4], in_training[4:]), strict=True):
        logged = {name: value for name, value in entry.items() if name in ("blc", "cov") or name.startswith("share/")}
        assert logged == pytest.approx(shares_by_hand(expected), rel=1e-6)
        assert len(logged) == 6
    evaluated = [entry for entry in history if "eval_loss" in entry][-1]
    figures = ("eval_share", "eval_blc", "eval_cov")
    of_eval = {name[len("eval_") :]: v for name, v in evaluated.items() if name.startswith(figures)}
    assert of_eval == pytest.approx(shares_by_hand([b for training, b in balances if not training]), rel=1e-6)


def test_evaluation_loss_is_the_language_models_alone(train, tiny_task, tmp_path: Path):
    metrics = train(tmp_path, blc_weight=5, per_device_eval_batch_size=12)
    base = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    model = PeftModel.from_pretrained(base, tmp_path / ADAPTER).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / ADAPTER)
    samples, _ = tokenise_dataset(tiny_task.test_file, tokenizer, max_seq_length=32, cache_dir=tiny_task.cache)
    batch = SftCollator(tokenizer.pad_token_id)(list(samples))
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).item()
    assert metrics["after"]["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["after"]["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    for task_type, name in ((0, "tasks"), (1, "knowledge")):
        chosen = batch["task_types"] == task_type
        of_type = torch.nn.functional.cross_entropy(
            logits[chosen].flatten(0, 1), batch["labels"][chosen, 1:].flatten()
        ).item()
        assert metrics["after"][f"loss/{name}"] == pytest.approx(of_type, rel=1e-6)


def test_evaluation_loss_does_not_depend_on_the_batch_size(train, tmp_path: Path):
    train(tmp_path, max_steps=2)
    losses = [train(tmp_path, do_eval="true", per_device_eval_batch_size=size)["after"]["loss"] for size in (5, 12)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_evaluation_is_never_smoothed(train, tmp_path: Path):
    runs = {factor: train(tmp_path / str(factor), max_steps=3, label_smoothing_factor=factor) for factor in (0, 0.2)}
    assert runs[0]["before"] == runs[0.2]["before"]
    assert runs[0]["after"] != runs[0.2]["after"]


def test_without_evaluation_rows_nothing_is_evaluated(train, tmp_path: Path):
    none = {"validation_file": None, "validation_split_percentage": 0}
    metrics = train(tmp_path, **none, eval_strategy="steps", eval_steps=1, max_steps=1)
    assert metrics == {"before": {}, "after": {}}
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").is_file()


def test_the_best_model_needs_evaluation_rows(train, tmp_path: Path):
    none = {"validation_file": None, "validation_split_percentage": 0}
    with pytest.raises(UsageError, match=r"load_best_model_at_end needs samples to evaluate on.*Set --validation_file"):
        train(tmp_path, **none, eval_strategy="steps", eval_steps=3, load_best_model_at_end="true")


def test_checkpoints_hold_the_adapter_and_not_the_base(train, tmp_path: Path):
    train(tmp_path)
    saved = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("", "checkpoint-3/", "checkpoint-6/"):
        adapter = {Path(name).name for name in saved if name.startswith(f"{folder}{ADAPTER}/")}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= adapter
    assert {"checkpoint-3/complete", "checkpoint-3/optimizer.pt", METRICS, "all_results.json"} <= saved
    assert [name for name in saved if Path(name).name in ("model.safetensors", "README.md")] == [f"{ADAPTER}/README.md"]
    assert not [name for name in saved if "incomplete" in name or name.endswith(".old")]
    everything = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)["state"]
    linears, tensors = 2 * 3, 3
    assert len(everything) == linears * tensors


def test_the_best_checkpoint_is_the_one_kept(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = {0: 3.0, 2: 1.0, 4: 2.0, 6: 3.0}
    evaluate = LoraMoeTrainer.evaluation_loop

    def evaluation_loop(self: LoraMoeTrainer, *args: object, **kwargs: object) -> object:
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_loss"] = losses[self.state.global_step]
        return output

    monkeypatch.setattr(LoraMoeTrainer, "evaluation_loop", evaluation_loop)
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    train(tmp_path, **steps, load_best_model_at_end="true")
    best = tmp_path / "checkpoint-2" / ADAPTER / "adapter_model.safetensors"
    last = tmp_path / "checkpoint-6" / ADAPTER / "adapter_model.safetensors"
    final = tmp_path / ADAPTER / "adapter_model.safetensors"
    assert final.read_bytes() == best.read_bytes() != last.read_bytes()
    assert not (tmp_path / "checkpoint-4").exists()


def test_recall_is_measured_before_and_after(train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def recall(model: torch.nn.Module, tokenizer: object, probes: list, **options: object) -> list[bool]:
        asked.append(len(probes))
        return [True, *([False] * (len(probes) - 1))] if len(asked) == 1 else [True] * len(probes)

    monkeypatch.setattr(trainer_module, "recall", recall)
    metrics = train(tmp_path, recall_file=tiny_task.recall_file)
    assert asked == [6, 6]
    assert metrics["before"]["recall"] == pytest.approx(1 / 6)
    assert metrics["after"]["recall"] == 1


@pytest.mark.parametrize(("count", "world_size"), [(33, 2), (6, 3), (2, 5)])
def test_all_processes_ask_for_equally_many_probes(count: int, world_size: int):
    shares = [assign(count, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-count // world_size)}
    assert {index for share in shares for index in share} == set(range(count))


def test_repeated_probes_count_once(train, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainer_module, "assign", lambda count, rank, world_size: [0, 1, 2, 3, 4, 5, 0, 0])
    monkeypatch.setattr(
        trainer_module, "recall", lambda model, tokenizer, probes, **_: [p == probes[0] for p in probes]
    )
    metrics = train(tmp_path, recall_file=tiny_task.recall_file, max_steps=1)
    assert metrics["after"]["recall"] == pytest.approx(1 / 6)


def test_several_validation_sets_have_losses_of_their_own(train, tiny_task, tmp_path: Path):
    samples = json.loads(tiny_task.test_file.read_text())
    for name, part in (("easy", samples[:6]), ("hard", samples[6:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    sets = [{"path": str(tmp_path / f"{name}.json"), "name": name} for name in ("easy", "hard")]
    (tmp_path / "mix.yaml").write_text(
        json.dumps({"datasets": [{"path": str(tiny_task.train_dir)}], "validation": sets})
    )
    train(tmp_path / "all", max_steps=2)
    flags = {"dataset_dir": None, "validation_file": None, "datasets": tmp_path / "mix.yaml", "max_steps": 2}
    metrics = train(tmp_path / "two", **flags)
    assert {"easy_loss", "hard_loss", "easy_loss/knowledge", "hard_perplexity/tasks"} <= metrics["after"].keys()
    limited = train(tmp_path / "few", **flags, max_eval_samples=2)
    assert limited["after"]["easy_loss"] != metrics["after"]["easy_loss"]


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


def test_repeated_samples_of_the_last_batch_do_not_count(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a second process, whose part of the last batch repeats samples of others."""
    train(tmp_path, max_steps=1)
    real = train(tmp_path, do_eval="true", per_device_eval_batch_size=8)["after"]
    cut = iter([8, 8, 3, 3] * 2)
    monkeypatch.setattr(LoraMoeTrainer, "_real_samples", lambda self, count: next(cut))
    less = train(tmp_path, do_eval="true", per_device_eval_batch_size=8)["after"]
    assert real["loss"] != less["loss"]
