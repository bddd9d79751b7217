"""What a run prints, and what of it goes to the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from loramoe.training import parse
from loramoe.training.arguments import Arguments
from loramoe.training.summary import before_and_after, create_repository, final_summary, push
from loramoe.utils import SaveError, UsageError
from tests.ecosystem.hub_server import TOKEN, Hub, serving

HISTORY = [
    {"step": 0, "recall": 0.9},
    {"step": 0, "eval_loss": 2.0, "eval_perplexity": 7.4},
    {"step": 5, "eval_loss": 1.5, "eval_perplexity": 4.5},
    {"step": 9, "eval_loss": 1.0, "eval_perplexity": 2.7, "eval_loss/knowledge": 0.5, "eval_blc": 3.0},
    {"step": 9, "recall": 0.8},
]


def test_before_is_of_step_zero_and_after_is_the_last():
    assert before_and_after(HISTORY) == {
        "before": {"loss": 2.0, "perplexity": 7.4, "recall": 0.9},
        "after": {"loss": 1.0, "perplexity": 2.7, "loss/knowledge": 0.5, "recall": 0.8},
    }
    assert before_and_after([{"step": 3, "eval_held_out_loss": 1.0}]) == {"before": {}, "after": {"held_out_loss": 1.0}}


def arguments(output_dir: Path, *flags: str) -> Arguments:
    return parse(["--base_model", "base", "--dataset_dir", "rows", "--output_dir", str(output_dir), *flags])


def test_the_summary_names_files_results_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    adapter = tmp_path / "sft_lora_model"
    printed = final_summary(arguments(tmp_path, "--recall_file", "facts.json"), before_and_after(HISTORY))
    assert f'from_pretrained(base, "{adapter}")' in printed
    assert f"  .venv/bin/python -m loramoe.generate --adapter {adapter} --prompt" in printed
    assert f"  .venv/bin/python -m loramoe.evaluate --adapter {adapter} --file facts.json" in printed
    assert "evaluation loss: 2 before, 1 after" in printed
    assert "evaluation loss (knowledge): 0.5 after" in printed
    assert "experts" not in printed
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "experts.html").touch()
    printed = final_summary(arguments(tmp_path), before_and_after(HISTORY), "Separation 9")
    assert "PYTHONPATH=. .venv/bin/python -m lm_eval --model hf" in printed
    assert f"report    {tmp_path / 'report' / 'experts.html'}" in printed
    assert "experts   Separation 9" in printed


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
    (folder.parent / "arguments.json").write_text("{}")
    return folder


def pushing(output_dir: Path, *flags: str) -> object:
    return arguments(output_dir, "--push_to_hub", "true", *flags)[2]


def test_the_adapters_folder_is_pushed_and_nothing_beside_it(hub: Hub, adapter: Path):
    args = pushing(adapter.parent, "--hub_model_id", "team/mine", "--hub_revision", "second")
    repository = create_repository(args)
    assert (repository, args.push_to_hub) == ("team/mine", False)  # the Trainer would push output_dir
    assert push(repository, adapter, "second") == f"{hub.url}/team/mine/commit/{hub.revision('team/mine')}"
    assert hub.commits["team/mine"] == [("second", ["adapter_config.json"])]
    assert create_repository(pushing(adapter.parent)) == "user/run"


@pytest.mark.parametrize(
    ("flags", "token", "message"),
    [
        (["--hub_model_id", "team/mine"], "hf_of_someone_else", "no repository team/mine on .*Invalid credentials"),
        (["--hub_model_id", "a/b/c"], TOKEN, "no repository a/b/c on .*Repo id must be"),
    ],
)
def test_what_cannot_be_pushed_is_refused_early(hub: Hub, tmp_path: Path, flags, token, message, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match=message):
        create_repository(pushing(tmp_path, *flags))


def test_a_push_that_fails_loses_nothing_and_names_the_command_to_repeat_it(hub: Hub, adapter: Path):
    create_repository(pushing(adapter.parent, "--hub_model_id", "team/mine"))
    hub.accepts_commits = False
    with pytest.raises(SaveError, match=rf"whole in {adapter}, .* hf upload team/mine {adapter} --revision second$"):
        push("team/mine", adapter, "second")
