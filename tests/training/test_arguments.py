"""Flags: the release's all parse, typos never pass for wishes, contradictions are told with their fix."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from transformers import TrainingArguments

from loramoe.training.arguments import DataArguments, ModelArguments, comma_list, parse

NEEDED = ["--model_name_or_path", "base", "--dataset_dir", "rows", "--output_dir", "out"]


# Every flag of the release's launcher and of its argument classes, as it would have been started.
RELEASE = """
    --model_name_or_path base --tokenizer_name_or_path words --dataset_dir rows --validation_file test.json
    --validation_split_percentage 0.05 --per_device_train_batch_size 3 --per_device_eval_batch_size 5 --do_train
    --do_eval --seed 41 --num_train_epochs 1 --lr_scheduler_type cosine --learning_rate 2e-4 --warmup_ratio 0.03
    --weight_decay 0 --logging_strategy steps --logging_steps 10 --save_strategy steps --save_total_limit 5
    --evaluation_strategy steps --eval_steps 6000 --save_steps 5000 --gradient_accumulation_steps 2
    --preprocessing_num_workers 8 --max_seq_length 1024 --output_dir out --overwrite_output_dir --ddp_timeout 30000
    --logging_first_step True --lora_rank 4 --lora_alpha 32 --lora_nums 8 --blc_alpha 0.1 --blc_weight 0.2
    --trainable gate_proj,down_proj,up_proj --lora_dropout 0.05 --torch_dtype float16 --load_in_kbits 16
    --modules_to_save lm_head --double_quant False --quant_type fp4 --peft_path adapter
    --ddp_find_unused_parameters False
"""


def parsed(*flags: str) -> tuple:
    return parse([*NEEDED, *flags])


def test_every_flag_of_the_release_parses():
    model, data, training = parse(RELEASE.split())
    assert (model.tokenizer_name_or_path, model.trainable, model.modules_to_save) == (
        "words",
        "gate_proj,down_proj,up_proj",
        "lm_head",
    )
    assert (model.lora_rank, model.lora_alpha, model.lora_nums, model.lora_dropout) == (4, 32, 8, 0.05)
    assert (model.blc_alpha, model.blc_weight) == (0.1, 0.2)
    assert (model.load_in_kbits, model.double_quant, model.quant_type, model.torch_dtype) == (
        16,
        False,
        "fp4",
        "float16",
    )
    assert model.peft_path == "adapter"
    assert (data.preprocessing_num_workers, data.max_seq_length, data.split_percentage()) == (8, 1024, 5.0)
    assert training.eval_strategy == "steps"
    assert training.overwrite_output_dir
    assert (training.per_device_train_batch_size, training.eval_steps, training.seed) == (3, 6000, 41)


def test_defaults_are_the_papers():
    model, data, training = parsed()
    assert (model.lora_rank, model.lora_alpha, model.lora_nums, model.lora_dropout) == (4, 32, 8, 0.05)
    assert (model.blc_alpha, model.blc_weight, model.blc_target) == (0.1, 0.1, "match")
    assert (training.learning_rate, training.lr_scheduler_type) == (2e-4, "cosine")
    assert training.get_warmup_steps(1000) == 30
    assert data.prompt_template == "release"
    assert training.report_to == []


@pytest.mark.parametrize("flag", ["--lora_rnak", "--lora-rnak"])
def test_an_unknown_flag_is_an_error_that_names_the_nearest(flag: str):
    with pytest.raises(ValueError, match=rf"unknown flag {flag}\. Did you mean --lora_rank\?"):
        parsed(flag, "4")


def test_a_flag_far_from_all_others_points_to_the_help():
    with pytest.raises(ValueError, match=r"unknown flag --zzzzqqq\. See python train\.py --help"):
        parsed("--zzzzqqq")


def test_an_abbreviation_is_no_flag():
    with pytest.raises(ValueError, match="unknown flag --lora_r"):
        parsed("--lora_r", "4")


def test_a_word_without_flag_is_an_error():
    with pytest.raises(ValueError, match="unexpected argument 'more'"):
        parsed("--lora_rank", "4", "more")


def test_both_names_of_the_evaluation_strategy():
    assert parsed("--eval_strategy", "steps", "--evaluation_strategy", "steps")[2].eval_strategy == "steps"
    assert parsed()[2].eval_strategy == "no"
    with pytest.raises(ValueError, match=r"eval_strategy='epoch' and evaluation_strategy='steps'. Keep one"):
        parsed("--eval_strategy", "epoch", "--evaluation_strategy", "steps")


@pytest.mark.parametrize("flags", [["--gradient_checkpointing"], ["--gradient_checkpointing", "true"]])
def test_gradient_checkpointing_is_never_reentrant(flags: list[str]):
    training = parsed(*flags)[2]
    assert training.gradient_checkpointing is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_options_of_gradient_checkpointing_are_kept():
    options = parsed("--gradient_checkpointing_kwargs", '{"preserve_rng_state": false}')[
        2
    ].gradient_checkpointing_kwargs
    assert options == {"use_reentrant": False, "preserve_rng_state": False}


def test_warmup_steps_override_the_ratio():
    assert parsed("--warmup_steps", "7", "--warmup_ratio", "0.5")[2].get_warmup_steps(100) == 7
    assert parsed("--warmup_ratio", "0.25")[2].get_warmup_steps(100) == 25


def test_a_warmup_ratio_beyond_one_is_an_error():
    with pytest.raises(ValueError, match=r"share of the steps in \[0, 1\); got warmup_ratio=30"):
        parsed("--warmup_ratio", "30")


def test_grouping_by_length_has_one_name():
    assert not parsed()[2].group_by_length
    training = parsed("--group_by_length", "true")[2]
    assert training.group_by_length
    assert getattr(training, "train_sampling_strategy", "group_by_length") == "group_by_length"


@pytest.mark.skipif(Version(transformers.__version__) < Version("5"), reason="a flag of transformers 5")
def test_two_ways_to_draw_rows_are_an_error():
    with pytest.raises(ValueError, match=r"exclude each other; got train_sampling_strategy='sequential'\. Keep one"):
        parsed("--group_by_length", "true", "--train_sampling_strategy", "sequential")


def test_packing():
    assert [parsed(*flags)[1].packing for flags in ([], ["--packing"], ["--packing", "true"])] == [False, True, True]


def test_several_trackers():
    assert parsed("--report_to", "tensorboard, wandb")[2].report_to == ["tensorboard", "wandb"]


def test_expert_types():
    assert parsed("--expert_types", "1,1,0")[0].expert_type_list() == [1, 1, 0]
    assert parsed()[0].expert_type_list() is None
    with pytest.raises(ValueError, match=r"comma-separated integers.*got expert_types='1,x'"):
        parsed("--expert_types", "1,x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_kbits", "3"], "load_in_kbits must be 4, 8 or 16; got load_in_kbits=3"),
        (["--remove_unused_columns", "true"], "remove_unused_columns must be false"),
        (["--train_file", "a.json"], "dataset_dir='rows' and train_file='a.json'. Keep one"),
    ],
)
def test_contradictions_name_their_fix(flags: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parsed(*flags)


def test_something_to_train_on_is_needed():
    with pytest.raises(ValueError, match=r"nothing to train on. Set --dataset_dir"):
        parse(["--model_name_or_path", "base", "--output_dir", "out"])


def test_an_output_dir_is_needed():
    with pytest.raises(ValueError, match="output_dir is where the adapter goes"):
        parse(["--model_name_or_path", "base", "--dataset_dir", "rows"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_kbits", "4"], "load_in_kbits=4 needs bitsandbytes.*Run pip install bitsandbytes"),
        (["--flash_attn"], "flash_attn needs flash_attn.*Run pip install flash-attn"),
        (["--deepspeed", "ds_config.json"], "deepspeed=ds_config.json needs deepspeed.*Run pip install deepspeed"),
        (["--use_liger_kernel", "true"], "use_liger_kernel=True needs liger_kernel.*Run pip install liger-kernel"),
    ],
)
def test_a_missing_package_is_named(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    absent = {"bitsandbytes", "flash_attn", "deepspeed", "liger_kernel"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    with pytest.raises(ValueError, match=message):
        parsed(*flags)


def test_flash_attention_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("loramoe.training.model_arguments.require", lambda *args, **options: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="flash_attn needs a GPU, and PyTorch sees none here"):
        parsed("--flash_attn")


@pytest.mark.parametrize(
    ("flags", "train_and_eval"),
    [
        ([], (True, True)),
        (["--eval_strategy", "steps", "--eval_steps", "5"], (True, True)),
        (["--do_eval"], (False, True)),
        (["--do_train"], (True, False)),
        (["--do_train", "false"], (False, True)),
        (["--do_eval", "false"], (True, False)),
        (["--do_train", "--do_eval"], (True, True)),
    ],
)
def test_without_a_wish_a_run_trains_and_evaluates(flags: list[str], train_and_eval: tuple[bool, bool]):
    training = parsed(*flags)[2]
    assert (training.do_train, training.do_eval) == train_and_eval


def test_nothing_to_do_is_an_error():
    with pytest.raises(ValueError, match="do_train and do_eval are both false"):
        parsed("--do_train", "false", "--do_eval", "false")


def test_several_gpus_want_several_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"one process must have one GPU.*torchrun --nproc_per_node 2 train\.py"):
        parsed()


def test_shares_and_per_cents_to_set_aside():
    share = lambda value, **more: DataArguments("rows", validation_split_percentage=value, **more).split_percentage()  # noqa: E731
    assert share(0.1) == pytest.approx(10)
    assert share(0.05) == pytest.approx(5)
    assert share(10) == 10
    assert share(1) == 1
    assert share(0) == 0
    assert share(None) == 5
    assert share(None, validation_file="test.json") is None


@pytest.mark.parametrize("value", [-5, 0.005, 99.5, 100])
def test_a_percentage_out_of_range_is_an_error(value: float):
    with pytest.raises(
        ValueError, match=rf"a share from 0\.01 .*percentage={value}\. For 5 per cent, write 5 or 0\.05"
    ):
        DataArguments("rows", validation_split_percentage=value)


def test_a_file_of_flags_and_flags_that_override_it(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: base\ndataset_dir: rows\noutput_dir: out\nlora_rank: 2\nlearning_rate: 1e-3\n")
    model, _, training = parse([str(file), "--lora_rank", "8"])
    assert model == ModelArguments("base", lora_rank=8)
    assert training.learning_rate == 1e-3


def test_an_unknown_key_of_a_file_is_an_error(tmp_path: Path):
    file = tmp_path / "run.json"
    file.write_text('{"model_name_or_path": "base", "dataset_dir": "rows", "output_dir": "out", "lora_ranks": 2}')
    with pytest.raises(ValueError, match=r"unknown flag --lora_ranks. Did you mean --lora_rank"):
        parse([str(file)])


def test_comma_list():
    assert comma_list("a, b,") == ["a", "b"]
    assert comma_list("  ") is None
    assert comma_list(None) is None


def test_machines_share_their_output_dir():
    with pytest.raises(ValueError, match=r"save_on_each_node must be false: rank 0 decides .*Leave the flag out"):
        parse([*NEEDED, "--save_on_each_node", "true"])
