"""Tokens leave the arguments and the command line for the environment."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from loramoe.training.secrets import keep_secrets, without_secrets

TOKEN = "hf_planted_token"


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["train.py", "--hub_token", TOKEN, "--seed", "1"], ["train.py", "--hub_token", "hidden", "--seed", "1"]),
        (["train.py", f"--hub_token={TOKEN}"], ["train.py", "--hub_token=hidden"]),
        (["train.py", "--hub-token", TOKEN], ["train.py", "--hub-token", "hidden"]),
        (["train.py", f"--push_to_hub_token={TOKEN}"], ["train.py", "--push_to_hub_token=hidden"]),
        (["train.py", "--hub_token"], ["train.py", "--hub_token"]),
        (["train.py", "--hub_token", "--seed", "1"], ["train.py", "--hub_token", "--seed", "1"]),
        (["hub_token", "x", "--average_tokens", "true"], ["hub_token", "x", "--average_tokens", "true"]),
    ],
)
def test_a_command_line_without_its_tokens(argv: list[str], shown: list[str]):
    assert without_secrets(argv) == shown


def test_the_token_goes_where_the_hub_looks_for_it(tmp_path: Path):
    args = TrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, use_cpu=True)
    argv = ["train.py", "--hub_token", TOKEN]
    environment = {"HF_TOKEN": "another", "HOME": "/"}
    same = argv
    keep_secrets(args, argv, environment)
    assert args.hub_token is None
    assert environment == {"HF_TOKEN": TOKEN, "HOME": "/"}
    assert same == ["train.py", "--hub_token", "hidden"]


def test_without_a_token_the_environment_stays():
    environment = {"HF_TOKEN": "mine"}
    keep_secrets(SimpleNamespace(hub_token=None, seed=1), ["train.py"], environment)
    assert environment == {"HF_TOKEN": "mine"}


def test_the_older_name_of_the_flag():
    args, environment = SimpleNamespace(push_to_hub_token=TOKEN), {}
    keep_secrets(args, [], environment)
    assert (args.push_to_hub_token, environment) == (None, {"HF_TOKEN": TOKEN})
