"""A file of flags becomes the command line that would have said the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramoe.training.arguments import TrainArguments
from loramoe.training.flag_file import flags_of_file


def flags(tmp_path: Path, text: str, name: str = "run.yaml") -> list[str]:
    file = tmp_path / name
    file.write_text(text)
    return flags_of_file(file, TrainArguments)


def test_values_lists_and_mappings(tmp_path: Path):
    text = """
    learning_rate: 2e-4
    do_train: true
    peft_path: null
    trainable: [up_proj, down_proj]
    label_names: [labels, task_types]
    lr_scheduler_kwargs: {num_cycles: 2}
    """
    assert flags(tmp_path, text) == [
        "--learning_rate=2e-4",
        "--do_train=True",
        "--trainable=up_proj,down_proj",
        *("--label_names", "labels", "task_types"),
        '--lr_scheduler_kwargs={"num_cycles": 2}',
    ]


def test_json(tmp_path: Path):
    assert flags(tmp_path, '{"lora_rank": 2}', "run.json") == ["--lora_rank=2"]


def test_no_such_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file of flags at .*none.yaml"):
        flags_of_file(tmp_path / "none.yaml", TrainArguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"neither JSON nor YAML \(line 1, "),
        ("- a", "expected one mapping of flags to values, got list"),
        ("", "expected one mapping of flags to values, got NoneType"),
        ("seed: " + "9" * 5000, "neither JSON nor YAML .*digits"),
        ("run_name: 2024-13-01", "neither JSON nor YAML .*month"),
        ("[" * 10_000, "neither JSON nor YAML .*nested too deeply"),
        ("a: &x [b]\nc: *x", "an alias of a list or mapping: write it out"),
        ("a: &x [*x]", "an alias of a list or mapping"),
        ("1: a", "1 is no name of a flag"),
        ("'': a", "'' is no name of a flag"),
        ("a b: c", "'a b' is no name of a flag"),
        ("trainable: [[up_proj]]", "trainable is given a list; expected text, a number, or a list of them"),
        ("seed: !!binary aGk=", "seed is given a bytes; expected text"),
        ("seed: !!set {a, b}", "seed is given a set"),
        ("fsdp_config: {a: 2024-01-01}", "not JSON serializable"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_no_flags_in_it(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        flags(tmp_path, text)


def test_no_text(tmp_path: Path):
    (tmp_path / "run.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(ValueError, match=r"run.yaml: neither JSON nor YAML \('utf-8' codec"):
        flags_of_file(tmp_path / "run.yaml", TrainArguments)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match=r"run.yaml: cannot be read \(Permission denied\)"):
        flags(tmp_path, "")


def test_an_error_does_not_show_the_lines_of_the_file(tmp_path: Path):
    with pytest.raises(ValueError, match=r"run.yaml: neither JSON nor YAML \(line 2") as caught:
        flags(tmp_path, "run_name: a\nhub_token: hf_planted: x")
    assert "planted" not in str(caught.value)


def test_values_that_begin_with_a_dash_and_scalars_named_again(tmp_path: Path):
    text = "run_name: --x\nmax_steps: -1\nseed: &s 3\ndata_seed: *s\nlogging_dir: 2024-01-01"
    wanted = ["--run_name=--x", "--max_steps=-1", "--seed=3", "--data_seed=3", "--logging_dir=2024-01-01"]
    assert flags(tmp_path, text) == wanted
