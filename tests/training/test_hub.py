"""What of a run goes to the hub: the flags are checked first, the adapter's folder alone is pushed, nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from loramoe.training.arguments import Arguments
from loramoe.training.hub import open_repository, push
from loramoe.training.parser import parse
from loramoe.utils import SaveError, UsageError
from tests.ecosystem.hub_server import TOKEN, Hub, serving


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the real one, with a token for it."""
    with serving() as hub:
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "sft_lora_model"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder.parent / "arguments.json").write_text("{}")
    return folder


def arguments(output_dir: Path, *flags: str, base: str = "someone/base") -> Arguments:
    needed = ["--model_name_or_path", base, "--dataset_dir", "rows", "--output_dir", str(output_dir)]
    return parse([*needed, "--push_to_hub", "true", *flags])


def test_the_trainer_is_not_told_of_the_hub(hub: Hub, tmp_path: Path):
    asked = arguments(tmp_path, "--hub_model_id", "team/mine")
    assert open_repository(asked) == "team/mine"
    assert asked[2].push_to_hub is False
    assert hub.files == {"team/mine": {}}


def test_without_the_flag_nothing_is_asked(hub: Hub, tmp_path: Path):
    assert (
        open_repository(parse(["--model_name_or_path", "b", "--dataset_dir", "r", "--output_dir", str(tmp_path)]))
        is None
    )
    assert hub.files == {}


def test_without_a_name_the_repository_is_named_after_output_dir(hub: Hub, tmp_path: Path):
    assert open_repository(arguments(tmp_path / "my_run")) == "user/my_run"


def test_the_adapters_folder_is_pushed_and_nothing_beside_it(hub: Hub, adapter: Path):
    asked = arguments(adapter.parent, "--hub_model_id", "team/mine", "--hub_revision", "second")
    repository = open_repository(asked)
    assert repository is not None
    address = push(repository, adapter, asked[2])
    assert address == f"{hub.url}/team/mine/commit/{hub.revision('team/mine')}"
    assert hub.files["team/mine"] == {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    assert hub.commits["team/mine"] == [("second", ["adapter_config.json", "adapter_model.safetensors"])]


def test_a_token_that_does_not_fit_is_told_before_the_training(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    message = rf"push_to_hub: there can be no repository team/mine on {hub.url}: .*Invalid credentials"
    with pytest.raises(UsageError, match=message):
        open_repository(arguments(tmp_path, "--hub_model_id", "team/mine"))


def test_a_name_that_cannot_be_one_is_told(hub: Hub, tmp_path: Path):
    with pytest.raises(UsageError, match=r"there can be no repository a/b/c on .*Repo id must be"):
        open_repository(arguments(tmp_path, "--hub_model_id", "a/b/c"))


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_pushed(strategy: str, tmp_path: Path):
    with pytest.raises(UsageError, match=rf"hub_strategy={strategy} would push the optimizer's state"):
        open_repository(arguments(tmp_path, "--hub_strategy", strategy))


def test_an_evaluation_is_not_pushed(tmp_path: Path):
    with pytest.raises(UsageError, match="push_to_hub pushes what a training has finished, and do_train is false"):
        open_repository(arguments(tmp_path, "--do_train", "false", "--do_eval", "true"))


@pytest.mark.parametrize("revision", ["", " --revision second"])
def test_a_push_that_fails_loses_nothing_and_says_how_to_repeat_it(hub: Hub, adapter: Path, revision: str):
    branch = ["--hub_revision", "second"] if revision else []
    asked = arguments(adapter.parent, "--hub_model_id", "team/mine", *branch)
    repository = open_repository(asked)
    assert repository is not None
    hub.accepts_commits = False
    command = f"hf upload team/mine {adapter}{revision}"
    with pytest.raises(SaveError, match=rf"whole in {adapter}, .* out of order.* {command}$"):
        push(repository, adapter, asked[2])
