"""Flags: those of the original release all parse, a file becomes flags, the last wins, typos are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramoe.training.arguments.parser import flags_of_file, make_parser, parse

NEEDED = ["--base_model", "base", "--dataset_dir", "rows", "--output_dir", "out"]

# Every flag of the original release's launcher and of its argument classes, as it would have been started.
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


def test_every_flag_of_the_original_release_parses():
    model, data, training = parse(RELEASE.split())
    assert (model.base_model, model.tokenizer_name_or_path, model.adapter) == ("base", "words", "adapter")
    assert (model.trainable, model.modules_to_save) == ("gate_proj,down_proj,up_proj", "lm_head")
    assert (model.load_in_kbits, model.double_quant, model.quant_type, model.dtype) == (16, False, "fp4", "float16")
    assert (data.preprocessing_num_workers, data.max_seq_length, data.split_percentage()) == (8, 1024, 5.0)
    assert (training.eval_strategy, training.overwrite_output_dir) == ("steps", True)
    assert (training.per_device_train_batch_size, training.eval_steps, training.seed) == (3, 6000, 41)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--datasets", "mix.yaml"], (None, "mix.yaml", 1)),
        (["--datasets", "mix.yaml", "--dataset_dir=b"], ("b", None, 1)),
        (["--gradient_accumulation_steps=2", "--global_batch_size", "32"], ("rows", None, 4)),
        (["--global_batch_size", "32", "--gradient_accumulation_steps", "2"], ("rows", None, 2)),
    ],
)
def test_of_flags_that_exclude_each_other_the_last_wins(flags: list[str], expected: tuple[object, ...]):
    _, data, training = parse([*NEEDED, *flags])
    assert (data.dataset_dir, data.datasets, training.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora-rnak", "4"], r"unknown flag --lora_rnak\. Did you mean --lora_rank\?"),
        (["--lora_r", "4"], "unknown flag --lora_r"),  # no abbreviation
        (["--zzzzqqq"], "See loramoe train --help"),
        (["--lora_rank", "4", "more"], "unexpected argument 'more'"),
    ],
)
def test_a_mistake_on_the_command_line(words: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parse([*NEEDED, *words])


def written(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return file


def test_values_lists_and_mappings_of_a_file(tmp_path: Path):
    text = """
    learning_rate: 2e-4
    do_train: true
    save_strategy: no
    adapter: null
    run_name: --x
    trainable: [up_proj, down_proj]
    label_names: [labels, task_types]
    lr_scheduler_kwargs: {min_lr: 1e-6, mode: no}
    """
    assert flags_of_file(written(tmp_path, text), make_parser()) == [
        "--learning_rate=0.0002",
        "--do_train=True",
        "--save_strategy=no",
        "--run_name=--x",
        "--trainable=up_proj,down_proj",
        *("--label_names", "labels", "task_types"),
        '--lr_scheduler_kwargs={"min_lr": 1e-06, "mode": "no"}',
    ]


def test_a_file_of_flags_stands_where_its_flags_would(tmp_path: Path):
    file = str(written(tmp_path, '{"base_model": "a", "dataset_dir": "rows", "lora_rank": 2}', "f.json"))
    model, data, _ = parse(["--output_dir=out", "--lora_nums=2", "--lora_rank=1", file, "--train_file", "b.json"])
    assert (model.base_model, model.lora_rank, model.lora_nums, data.dataset_dir) == ("a", 2, 2, "b.json")
    assert parse([file, "--lora_rank", "8", "--output_dir", "o"])[0].lora_rank == 8


def test_data_sets_stand_among_the_flags(tmp_path: Path):
    text = """
    base_model: base
    output_dir: out
    datasets:
      - {path: a.jsonl, task_type: 0, weight: 0.7}
      - {path: b.jsonl, task_type: 1, weight: 0.3}
    type_names: {0: tasks, 1: facts}
    """
    config = parse([str(written(tmp_path, text))])[1].config()
    assert [(s.path, s.task_type, s.weight) for s in config.datasets] == [("a.jsonl", 0, 0.7), ("b.jsonl", 1, 0.3)]
    assert config.type_names == {0: "tasks", 1: "facts"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor YAML .line 1"),
        ("- a", "expected one mapping of flags to values, got list"),
        ("[" * 1_500, "neither JSON nor YAML"),
        ("!!python/object/apply:os.system [ls]", "neither JSON nor YAML"),
    ],
)
def test_a_file_that_holds_no_flags(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse([str(written(tmp_path, text)), *NEEDED])
    with pytest.raises(FileNotFoundError, match=r"no file of flags at none\.yaml"):
        parse(["none.yaml"])


def test_an_error_does_not_show_the_lines_of_the_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"line 2") as caught:
        flags_of_file(written(tmp_path, "run_name: a\nhub_token: hf_planted: x"), make_parser())
    assert "planted" not in str(caught.value)
