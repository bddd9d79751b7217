"""Variables of run_loramoe.sh become flags; the user's flags win, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramoe.training import parse
from loramoe.training.launch.plan import Accelerators, make_plan
from loramoe.training.launch.variables import ROOT, check_names, fill_values, project_file, read_flags
from loramoe.utils import UsageError

SCRIPT = {
    "tiny_llama": "learning_rate=3e-3 max_seq_length=256",
    "pretrained_model": "data/tiny_llama",
    "dataset_dir": "data/tiny_data/train",
    "learning_rate": "2e-4",
    "max_seq_length": "1024",
    "eval_strategy": "steps",
    **dict.fromkeys(("datasets", "validation_file", "recall_file", "output_dir"), ""),
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def build(*flags: str, **variables: str) -> dict[str, str]:
    """The values that become flags before the user's own, with these variables in the environment."""
    values = {**SCRIPT, **variables}
    fill_values(values, read_flags(list(flags)), variables)
    return {name: value for name, value in values.items() if value}


def test_the_embedded_model_gets_its_own_values_and_files():
    tiny = {"pretrained_model": "data/tiny_llama", "learning_rate": "3e-3", "max_seq_length": "256"}
    tiny |= {"recall_file": "data/tiny_data/recall.json", "output_dir": "output/tiny_llama", "eval_strategy": "steps"}
    data = {"dataset_dir": "data/tiny_data/train", "validation_file": "data/tiny_data/test.json"}
    assert build() == {**tiny, **data}
    assert build(learning_rate="1e-4")["learning_rate"] == "1e-4"
    assert "validation_file" not in build("--validation_split_percentage", "5")
    by_flag = build("--model_name_or_path", "data/tiny_llama", pretrained_model="some/llama")
    assert (by_flag["learning_rate"], by_flag["recall_file"]) == ("3e-3", "data/tiny_data/recall.json")


@pytest.mark.parametrize(
    "flags",
    [["--model-name-or-path=some/llama"], ["--model_name_or_path", "data/tiny_llama", "--base_model=some/llama"]],
)
def test_another_model_named_by_flag_gets_the_papers_values(flags: list[str]):
    made = build(*flags)
    assert (made["learning_rate"], made["output_dir"]) == ("2e-4", "output/llama")
    assert "recall_file" not in made


def test_the_users_flags_and_file_win(tmp_path: Path):
    file = tmp_path / "flags.yaml"
    file.write_text("datasets: [{path: mine.json}]\nlearning_rate: 1e-5\nmodel_name_or_path: some/llama\nseed: null\n")
    user = [str(file), "--use_cpu", "--evaluation_strategy", "epoch", "--global_batch_size", "64"]
    plan = make_plan({**SCRIPT, "gradient_accumulation_steps": "1"}, user, Accelerators(), {})
    model, data, training = parse(plan.flags)
    assert (model.base_model, data.dataset_dir, data.config().datasets[0].path) == ("some/llama", None, "mine.json")
    assert (training.learning_rate, training.eval_strategy, training.gradient_accumulation_steps) == (1e-5, "epoch", 8)


@pytest.mark.parametrize("content", ["[1]", "a: ["])
def test_a_file_that_cannot_be_read_is_left_to_train(tmp_path: Path, content: str):
    (tmp_path / "flags.yaml").write_text(content)
    for file in (tmp_path / "flags.yaml", tmp_path / "none.yaml"):
        assert read_flags([str(file), "--use_cpu"]).use_cpu == "true"


@pytest.mark.parametrize(("flags", "variables"), [([], {"datasets": "mine"}), (["--dataset-dir=mine"], {})])
def test_own_data_needs_a_model(flags: list[str], variables: dict[str, str]):
    with pytest.raises(UsageError, match=r"=mine is your data.*pretrained_model=\S+ \w+=mine bash run_loramoe.sh"):
        build(*flags, **variables)
    assert build(*flags, **variables, pretrained_model="data/tiny_llama")["learning_rate"] == "3e-3"
    assert build(*flags, "--model_name_or_path", "data/tiny_llama", **variables)["learning_rate"] == "3e-3"


def test_paths_are_relative_to_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = build()
    assert made["pretrained_model"] == str(ROOT / "data/tiny_llama")
    assert made["output_dir"] == "output/tiny_llama"
    assert (project_file("configs/zero3.json"), project_file("mine")) == (str(ROOT / "configs/zero3.json"), "mine")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "zero3.json").touch()
    assert project_file("configs/zero3.json") == "configs/zero3.json"


NAMES = ("lora_nums", "lora_rank", "dataset_dir", "learning_rate", "seed", "fp16", "no_proxy_of_mine")


@pytest.mark.parametrize(
    ("name", "right"), [("lora_num", "lora_nums"), ("max_grad_norm", "--max_grad_norm 6 after the script")]
)
def test_a_variable_that_the_script_would_not_see_is_an_error(name: str, right: str):
    with pytest.raises(UsageError, match=f"{name}=6.*{right}"):
        check_names(NAMES, {name: "6"})


def test_variables_of_other_programs_pass():
    others = ("http_proxy", "no_proxy", "LORA_NUM", "speed", "bf16", "_", "npm_config_cache", "debug", "lora_nums")
    check_names(NAMES, dict.fromkeys(others, "6"))
