"""Values of flags: the paper's defaults, contradictions, and what follows from what."""

from __future__ import annotations

import importlib.util
import os

import pytest
from transformers import TrainingArguments

from loramoe.training import parse
from loramoe.training.arguments import Arguments, DataArguments, ModelArguments

NEEDED = ["--base_model", "base", "--dataset_dir", "rows", "--output_dir", "out"]
BEST = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"]


def parsed(*flags: str) -> Arguments:
    return parse([*NEEDED, *flags])


def test_defaults_are_the_papers():
    model, data, training = parsed()
    assert (model.lora_rank, model.lora_alpha, model.lora_nums, model.lora_dropout) == (4, 32, 8, 0.05)
    assert (model.blc_alpha, model.blc_weight, model.blc_target, model.blc_importance) == (0.1, 0.1, "match", "mean")
    assert (training.learning_rate, training.lr_scheduler_type) == (2e-4, "cosine")
    assert training.get_warmup_steps(1000) == 30
    assert (data.template, training.report_to, training.eval_strategy) == ("release", [], "no")


def test_every_flag_reaches_the_adapters_configuration():
    changes = {"lora_alpha": 7, "lora_dropout": 0.3, "lora_nums": 3, "blc_alpha": 0.4, "blc_weight": 0.5}
    changes |= {"blc_target": "paper", "blc_importance": "sum"}
    words = {"expert_types": "2,1,0", "modules_to_save": "lm_head", "lora_rank": 2}
    config = ModelArguments("base", **changes, **words).adapter_config()
    assert {name: getattr(config, name) for name in changes} == changes
    assert (config.r, config.types_of_experts, config.modules_to_save) == (2, (2, 1, 0), ["lm_head"])
    with pytest.raises(ValueError, match=r"expert_types must be .* got '1,x'"):
        ModelArguments("base", expert_types="1,x").adapter_config()


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        (None, None),
        ("up_proj, layers.0.mlp.down_proj", {"up_proj", "layers.0.mlp.down_proj"}),
        ("all-linear", "all-linear"),
        (r".*\.(up|down)_proj", r".*\.(up|down)_proj"),
    ],
)
def test_linear_layers_by_names_or_by_a_regular_expression(text: str | None, targets: object):
    assert ModelArguments("base", trainable=text).adapter_config().target_modules == targets


def test_flags_that_follow_from_others():
    assert parsed("--warmup_steps", "7", "--warmup_ratio", "0.5").training.get_warmup_steps(100) == 7
    assert parsed("--warmup_ratio", "0.25").training.get_warmup_steps(100) == 25
    assert parsed("--global_batch_size", "64", "--batch_size", "4").training.gradient_accumulation_steps == 16
    grouped = parsed("--group_by_length").training
    assert getattr(grouped, "train_sampling_strategy", "group_by_length") == "group_by_length"
    checkpointing = ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"preserve_rng_state": false}']
    training = parsed(*checkpointing).training
    assert training.gradient_checkpointing is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False, "preserve_rng_state": False}
    training = parsed("--early_stopping_patience", "2", *BEST[1:]).training
    assert (training.load_best_model_at_end, training.metric_for_best_model) == (True, "loss")
    for value, percentage in ((0.1, 10), (10, 10), (1, 1), (None, None)):
        assert DataArguments(dataset_dir="d", validation_split_percentage=value).split_percentage() == percentage


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--warmup_ratio", "30"], r"warmup_ratio must be in \[0, 1\); got 30"),
        (["--load_in_kbits", "3"], "load_in_kbits must be 4, 8 or 16; got load_in_kbits=3"),
        (["--remove_unused_columns", "true"], "remove_unused_columns must be false"),
        (["--packing", "--padding_free"], "Set one of packing and padding_free"),
        (["--do_train", "false"], "do_train must be true.*loramoe evaluate"),
        (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size must be at least 1; got .*=0"),
        (["--global_batch_size", "12"], "global_batch_size must be a multiple of 8"),
        (["--load_best_model_at_end", "--metric_for_best_model", "recall"], "metric of an evaluation.*got 'recall'"),
        (["--validation_split_percentage", "100"], r"percentage=100\.0"),
    ],
)
def test_contradictions_are_errors(flags: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parsed(*flags)


@pytest.mark.parametrize("missing", ["--dataset_dir", "--output_dir"])
def test_data_and_an_output_folder_are_needed(missing: str):
    place = NEEDED.index(missing)
    with pytest.raises(ValueError, match=missing):
        parse(NEEDED[:place] + NEEDED[place + 2 :])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_kbits", "4"], "load_in_kbits=4 needs bitsandbytes.*pip install bitsandbytes"),
        (["--flash_attn"], "flash_attention_2 needs flash_attn.*pip install flash-attn"),
        (["--deepspeed", "ds_config.json"], "deepspeed=ds_config.json needs deepspeed"),
        (["--use_liger_kernel", "true"], "needs liger_kernel.*pip install liger-kernel"),
        (["--report_to", "wandb"], "report_to=wandb needs wandb"),
    ],
)
def test_a_missing_package_is_named(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    absent = {"bitsandbytes", "flash_attn", "deepspeed", "liger_kernel", "wandb"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    with pytest.raises(ValueError, match=message):
        parsed(*flags)


def test_several_gpus_need_several_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"one process must have one GPU.*--nproc_per_node 2"):
        parsed()


@pytest.mark.parametrize(
    ("metric", "greater"), [("loss/knowledge", False), ("eval_share/type1/group1", True), ("discovery_share", True)]
)
def test_every_metric_has_its_direction(metric: str, greater: bool):
    assert parsed(*BEST, "--metric_for_best_model", metric).training.greater_is_better == greater


def test_a_token_leaves_the_arguments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "")
    training = parsed("--hub_token", "hf_secret").training
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert "hf_secret" not in training.to_json_string()
