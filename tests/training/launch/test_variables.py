"""Variables of run_loramoe.sh become flags; the user's flags win, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramoe.training.launch.variables import ROOT, FlagBuilder, check_names, project_file
from loramoe.utils import UsageError

SCRIPT = {
    "tiny_llama": "learning_rate=3e-3 max_seq_length=256",
    "pretrained_model": "data/tiny_llama",
    "dataset_dir": "data/tiny_data/train",
    "datasets": "",
    "validation_file": "",
    "recall_file": "",
    "output_dir": "",
    "learning_rate": "2e-4",
    "max_seq_length": "1024",
    "gradient_accumulation_steps": "1",
    "global_batch_size": "",
    "eval_strategy": "steps",
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def build(*flags: str, **variables: str) -> dict[str, str]:
    """The flags before the user's own, by name, with these variables in the environment."""
    builder = FlagBuilder({**SCRIPT, **variables}, list(flags), variables)
    builder.fill_from_model_and_data()
    words = builder.flags()
    assert words[len(words) - len(flags) :] == list(flags)
    ours = words[: len(words) - len(flags)]
    return dict(zip(ours[::2], ours[1::2], strict=True))


def test_the_embedded_model_gets_its_own_values_and_files():
    flags = build()
    assert flags == {
        "--model_name_or_path": "data/tiny_llama",
        "--dataset_dir": "data/tiny_data/train",
        "--validation_file": "data/tiny_data/test.json",
        "--recall_file": "data/tiny_data/recall.json",
        "--output_dir": "output/tiny_llama",
        "--learning_rate": "3e-3",
        "--max_seq_length": "256",
        "--gradient_accumulation_steps": "1",
        "--eval_strategy": "steps",
    }
    assert build(learning_rate="1e-4")["--learning_rate"] == "1e-4"


@pytest.mark.parametrize(
    "flags",
    [
        ["--model_name_or_path", "some/llama"],
        ["--model-name-or-path=some/llama", "--seed", "1"],
        ["--base_model", "some/llama"],
        ["--model_name_or_path", "data/tiny_llama", "--model-name-or-path=some/llama"],
    ],
)
@pytest.mark.parametrize("variables", [{}, {"pretrained_model": "data/tiny_llama"}])
def test_another_model_named_by_flag_gets_the_papers_values(flags: list[str], variables: dict[str, str]):
    made = build(*flags, **variables)
    assert (made["--learning_rate"], made["--output_dir"]) == ("2e-4", "output/llama")
    assert not {"--model_name_or_path", "--recall_file"} & made.keys()


def test_the_embedded_model_named_by_flag_gets_its_own_values():
    made = build("--model_name_or_path", "data/tiny_llama", pretrained_model="some/llama")
    assert (made["--learning_rate"], made["--recall_file"]) == ("3e-3", "data/tiny_data/recall.json")


@pytest.mark.parametrize(
    ("flags", "replaced"),
    [
        (["--train_file", "mine.json"], ["--dataset_dir", "--validation_file"]),
        (["--datasets", "mix.yaml"], ["--dataset_dir", "--validation_file"]),
        (["--dataset-dir=my data"], ["--dataset_dir", "--validation_file"]),
        (["--validation_split_percentage", "5"], ["--validation_file"]),
        (["--evaluation_strategy", "epoch"], ["--eval_strategy"]),
        (["--global_batch_size", "64"], ["--gradient_accumulation_steps"]),
        (["--learning_rate", "1"], ["--learning_rate"]),
    ],
)
def test_a_flag_replaces_what_it_contradicts(flags: list[str], replaced: list[str]):
    made = build(*flags, pretrained_model="data/tiny_llama")
    assert not set(replaced) & made.keys()
    assert build(pretrained_model="data/tiny_llama").keys() >= set(replaced)


def test_a_file_of_flags_comes_first_and_wins(tmp_path: Path):
    file = tmp_path / "flags.yaml"
    file.write_text("datasets: [{path: mine.json}]\nlearning_rate: 1e-5\nmodel_name_or_path: some/llama\nseed: null\n")
    builder = FlagBuilder({**SCRIPT, "seed": "42"}, [str(file), "--max_steps", "3"], {})
    assert not builder.fill_from_model_and_data()
    flags = builder.flags()
    assert (flags[0], flags[-2:]) == (str(file), ["--max_steps", "3"])
    assert not {"--dataset_dir", "--learning_rate", "--model_name_or_path"} & set(flags)
    assert "--seed" in flags


@pytest.mark.parametrize("content", ["[1]", "a: [", "\x00"])
def test_a_file_that_cannot_be_read_is_left_to_train(tmp_path: Path, content: str):
    (tmp_path / "flags.yaml").write_text(content)
    for file in (tmp_path / "flags.yaml", tmp_path / "none.yaml"):
        assert FlagBuilder({"seed": "1"}, [str(file)], {}).flags() == [str(file), "--seed", "1"]


def test_variables_that_exclude_each_other():
    made = build(datasets="mix.yaml", global_batch_size="64", pretrained_model="some/llama")
    assert made["--datasets"] == "mix.yaml"
    assert not {"--dataset_dir", "--validation_file", "--gradient_accumulation_steps"} & made.keys()
    both = build(datasets="mix.yaml", dataset_dir="mine", pretrained_model="some/llama")
    assert (both["--datasets"], both["--dataset_dir"]) == ("mix.yaml", "mine")  # train.py refuses that


class TestOwnData:
    """Whoever brings data and names no model does not mean the embedded one."""

    @pytest.mark.parametrize(
        ("flags", "variables"),
        [
            ([], {"dataset_dir": "mine"}),
            ([], {"datasets": "mine"}),
            (["--train_file", "mine"], {}),
            (["--dataset_dir=mine"], {}),
        ],
    )
    def test_it_needs_a_model(self, flags: list[str], variables: dict[str, str]):
        with pytest.raises(UsageError, match=r"=mine is your data.*pretrained_model=\S+ \w+=mine bash run_loramoe.sh"):
            build(*flags, **variables)
        assert build(*flags, **variables, pretrained_model="data/tiny_llama")["--learning_rate"] == "3e-3"
        assert build(*flags, "--model_name_or_path", "data/tiny_llama", **variables)["--learning_rate"] == "3e-3"


def test_paths_are_relative_to_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = build()
    assert made["--model_name_or_path"] == str(ROOT / "data/tiny_llama")
    assert made["--validation_file"] == str(ROOT / "data/tiny_data/test.json")
    assert made["--output_dir"] == "output/tiny_llama"
    assert (project_file("configs/zero3.json"), project_file("mine")) == (str(ROOT / "configs/zero3.json"), "mine")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "zero3.json").touch()
    assert project_file("configs/zero3.json") == "configs/zero3.json"


class TestCheckNames:
    """A variable that nearly is a hyper-parameter is an error; others belong to other programs."""

    NAMES = ("lora_nums", "lora_rank", "dataset_dir", "learning_rate", "seed", "fp16", "no_proxy_of_mine")

    @pytest.mark.parametrize(
        ("name", "right"),
        [("lora_num", "lora_nums"), ("lora_rnak", "lora_rank"), ("learning_rat", "learning_rate")],
    )
    def test_it_is_named(self, name: str, right: str):
        with pytest.raises(UsageError, match=f"{name}=6.*{right}"):
            check_names(self.NAMES, {name: "6"})

    def test_others_pass(self):
        names = (
            "http_proxy",
            "https_proxy",
            "no_proxy",
            "LORA_NUM",
            "speed",
            "bf16",
            "_",
            "npm_config_cache",
            "lora_nums",
        )
        check_names(self.NAMES, dict.fromkeys(names, "6"))
