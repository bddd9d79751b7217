"""Whatever the flags are, from a file or a command line: arguments, or an error that names the flag or the file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from loramoe.training.flag_file import flags_of_file

from loramoe.training.arguments import DataArguments, TrainArguments
from loramoe.training.model_arguments import ModelArguments
from loramoe.training.parser import parse
from tests.fuzz.strategies import TEXTS, VALUES, broken, drawn, spoilt, times, told

# Left out are flags that reach beyond the arguments while they are made: processes, devices, the whole interpreter.
BEYOND = {"deepspeed", "ddp_backend", "local_rank", "tpu_num_cores", "torch_compile", "mp_parameters"}
GROUPS = (ModelArguments, DataArguments, TrainArguments)
FLAGS = sorted({field.name for group in GROUPS for field in dataclasses.fields(group) if field.init} - BEYOND)
NAMES = st.sampled_from(FLAGS) | st.sampled_from(["lora_rnak", "no_such", "seed x", "", "é", "--seed", "a=b"])

pytestmark = pytest.mark.filterwarnings("ignore")


def valid(folder: Path) -> dict[str, Any]:
    wanted = {"model_name_or_path": "base", "train_file": "train.json", "output_dir": str(folder / "out")}
    return wanted | {"use_cpu": True, "lora_nums": 4, "learning_rate": 1e-4, "lr_scheduler_kwargs": {"num_cycles": 1}}


def check(argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parses, and sees to it that nothing was written and the environment is as it was."""
    environment = dict(os.environ)
    before = sorted(folder.rglob("*"))
    try:
        model, data, train = parse(argv)
    except (ValueError, FileNotFoundError) as error:
        told(error)
    except SystemExit as ended:  # of argparse
        code, message = ended.code, capsys.readouterr().err
        assert code == 2
        assert "error: argument -" in message or "error: the following arguments are required: --" in message
    else:
        assert (model.model_name_or_path, data.max_seq_length, train.output_dir) is not None
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert sorted(folder.rglob("*")) == before


@times(fast=60, slow=2000)
def test_files_of_values(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flags.json"

    @drawn(count)
    @given(spoilt(valid(tmp_path), NAMES))
    def holds(values: dict[str, Any]) -> None:
        file.write_text(json.dumps(values))
        check([str(file)], tmp_path, capsys)

    holds()


@times(fast=100, slow=2000)
def test_files_of_anything(count: int, tmp_path: Path) -> None:
    whole = yaml.safe_dump(valid(tmp_path) | {"label_names": ["labels"]}).encode()
    file = tmp_path / "flags.yaml"

    @drawn(count)
    @given(broken(whole) | VALUES.map(lambda value: yaml.safe_dump(value).encode()))
    def holds(content: bytes) -> None:
        file.write_bytes(content)
        try:
            flags = flags_of_file(file, TrainArguments)
        except ValueError as error:
            message = told(error)
            assert "flags.yaml: " in message
            return
        assert all(isinstance(word, str) for word in flags)

    holds()


@times(fast=60, slow=2000)
def test_command_lines(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = st.sampled_from([*TEXTS, "--", "-", "-h1", "1e400", "nan", "-1", "9" * 5000, "{}", "[]", "steps"])
    flags = st.tuples(NAMES, words).map(lambda flag: [f"--{flag[0]}", flag[1]])
    wanted = [word for name, value in valid(tmp_path).items() for word in (f"--{name}", str(value))]

    @drawn(count)
    @given(st.lists(flags | words.map(lambda word: [word]) | NAMES.map(lambda name: [f"--{name}"]), max_size=3))
    def holds(added: list[list[str]]) -> None:
        check(wanted[:-2] + [word for flag in added for word in flag], tmp_path, capsys)

    holds()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    for name in ("folder.yaml", "no.json", "x" * 300 + ".yml"):
        with pytest.raises((FileNotFoundError, ValueError, OSError), match=r"no file of flags at|File name too long"):
            parse([str(tmp_path / name)])
