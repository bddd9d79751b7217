"""What can be wrong is found before weights are loaded; what shapes a run is compared by content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data import DatasetError
from loramoe.training import parse
from loramoe.training.prepare import _check_evaluation, build_recipe, prepare
from loramoe.training.summary import dry_run_summary
from loramoe.utils import UsageError


@pytest.fixture
def prepared(own_dataset_cache: None, tiny_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`prepared(flag=value, …)`: the run, prepared; loading weights fails."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: pytest.fail("weights loaded"))
    return lambda **changes: prepare(parse(tiny_task.flags(tmp_path / "out", **changes)))


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"optim": "schedule_free_adamw"}, UsageError, "optim=.*schedule"),
        ({"seed": 99999999999}, UsageError, "seed=99999999999"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"no": 1}'}, UsageError, "lr_scheduler_type"),
        ({"trainable": "gate_proj,up_porj"}, UsageError, "up_porj"),
        ({"modules_to_save": "lm_haed"}, UsageError, "lm_haed"),
        ({"lora_nums": 1}, UsageError, "lora_nums must be at least 2"),
        ({"base_model": "/nowhere"}, UsageError, "/nowhere cannot be loaded"),
        ({"dataset_dir": "/nowhere"}, DatasetError, "/nowhere"),
        ({"template": "chat"}, UsageError, "chat_template"),
        ({"streaming": "true", "max_steps": -1}, UsageError, "streaming needs max_steps"),
        ({"streaming": "true", "group_by_length": "true"}, UsageError, "exclude each other"),
        ({"validation_split_percentage": 10}, UsageError, "Set only one"),
        ({"metric_for_best_model": "loss/knowlege"}, UsageError, "knowlege is not logged.* loss, loss/tasks"),
    ],
)
def test_a_mistake_is_found_before_weights_are_loaded(prepared, flags, error, message):
    with pytest.raises(error, match=message) as caught:
        prepared(**flags)
    assert "\n" not in str(caught.value)


def test_a_best_metric_needs_samples_and_one_of_several_sets(prepared):
    best = {"load_best_model_at_end": "true", "eval_strategy": "steps", "eval_steps": 3}
    with pytest.raises(UsageError, match="load_best_model_at_end needs samples"):
        prepared(validation_file=None, validation_split_percentage=0, **best)
    args = prepared().arguments.training
    for metric in ("loss", "second_loss/facts", "third_loss", "second_loss/tasks", "second_accuracy"):
        args.metric_for_best_model = metric
        if metric.startswith("second") and "facts" not in metric:
            _check_evaluation(args, ["first", "second"], ["tasks", "knowledge"])
        else:
            with pytest.raises(UsageError, match=f"{metric} is not logged.*first_loss"):
                _check_evaluation(args, ["first", "second"], ["tasks", "knowledge"])


def test_a_sample_beyond_the_positions(prepared, tmp_path: Path):
    long = {"instruction": "w1 " * 70, "output": "w2", "task_type": 0}
    (tmp_path / "long.json").write_text(json.dumps([long, {**long, "instruction": "w1"}]))
    with pytest.raises(UsageError, match=r"the base model knows 64 positions.* has 7[0-9] tokens"):
        prepared(dataset_dir=tmp_path / "long.json", max_seq_length=128)


def test_a_token_beyond_the_embedding_matters_only_where_it_occurs(prepared, tiny_task, tmp_path: Path):
    base = shutil.copytree(tiny_task.base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["more"])
    save_tokenizer(tokenizer, base)
    assert prepared(base_model=base).splits.report.max_token_id < 64
    samples = json.loads((tiny_task.train_dir / "train.json").read_text())
    samples[7]["output"] = "more"
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(UsageError, match=r"sample 7 has the token id 64, .* embedding has 64 rows"):
        prepared(base_model=base, dataset_dir=tmp_path / "samples.json")


def test_data_of_one_type_has_nothing_to_separate(prepared, tiny_task, tmp_path: Path, capsys):
    samples = json.loads((tiny_task.train_dir / "train.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps([s for s in samples if s["task_type"] == 0]))
    prepared()
    assert "nothing to separate" not in capsys.readouterr().out
    prepared(dataset_dir=tmp_path / "samples.json")
    assert "all samples have task type 0, so the constraint has nothing to separate" in capsys.readouterr().out


def test_the_recipe_is_of_content_and_not_of_paths(prepared, tiny_task, tmp_path: Path):
    before = build_recipe(prepared())
    moved = shutil.copytree(tiny_task.train_dir, tmp_path / "elsewhere")
    base = shutil.copytree(tiny_task.base, tmp_path / "base")
    harmless = {"eval_strategy": "steps", "save_steps": 1, "logging_steps": 1, "dataloader_num_workers": 1}
    harmless |= {"dataset_dir": moved, "base_model": base, "recall_file": tiny_task.recall_file}
    assert build_recipe(prepared(**harmless)) == before
    changes = {"label_smoothing_factor": 0.1, "max_grad_norm": 2.0, "adam_beta1": 0.5, "router_learning_rate": 0.1}
    now = build_recipe(prepared(max_seq_length=16, blc_alpha=0.2, **changes))
    assert {name for name in now if now[name] != before[name]} == {*changes, "training_data", "adapter_config"}


def test_an_edited_deepspeed_file_is_another_run(prepared, tmp_path: Path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    file, recipes = tmp_path / "zero.json", []
    for stage in (1, 2):
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}, "train_batch_size": "auto"}))
        recipes.append(build_recipe(prepared(deepspeed=file)))
    assert {name for name in recipes[0] if recipes[0][name] != recipes[1][name]} == {"deepspeed"}


def test_evaluation_takes_so_many_samples_at_most(prepared):
    ((_, samples),) = prepared(max_eval_samples=2).splits.validation.items()
    assert len(samples) == 2


def test_a_dry_run_counts_all_but_loads_nothing(prepared):
    printed = dry_run_summary(prepared(gradient_accumulation_steps=3))
    assert "global batch       12 = 4 per device x 3 accumulated x 1 processes" in printed
    assert "knowledge (type 1): 24" in printed
    trained = 2 * (3 * 8 * 4 * (32 + 48) + 8 * (2 * 32 + 48))  # layers, experts' A and B, routers
    assert f"{trained:,} trained" in printed
    assert "GiB by formula" in printed
