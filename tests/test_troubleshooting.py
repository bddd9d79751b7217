"""docs/troubleshooting.md holds: every command on it prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from loramoe.cli import main
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.training import parse, run_sft
from loramoe.training import run as program

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^###? ([^\n]*)\n(.*?)(?=^###? |\Z)", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^`(my_data/[\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CASE = re.compile(r"^```bash\n(.*?)\n```\n\n```text\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
FLAGS = shlex.split(re.findall(r"`…` stands for `(.*?)`", PAGE)[0])
# What stands on the page for folders of the reader's.
PLACES = ("my_data", "my_[a-z]+_(?:model|tokenizer)", "output")
HOME = "/home/me/LoRAMoE"

CASES = [
    pytest.param(command, expected, id=title, marks=[pytest.mark.slow] * command.startswith("python"))
    for title, body in SECTION.findall(PAGE)
    for command, expected in CASE.findall(body)
]


class Interrupted(TrainerCallback):
    """Ends a run as if it had been killed after its first checkpoint."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory):
    """A folder with all that the page takes for granted: models, tokenizers, a finished and an interrupted run."""
    import datasets

    root = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.chdir(ROOT)
        _write_models(root)
        (root / "my_data").mkdir()
        for name, content in FILE.findall(PAGE):
            (root / name).write_text(content, encoding="utf-8")
        flags = [*FLAGS, "--use_cpu", "--disable_tqdm", "true", "--do_eval", "false", "--save_steps", "1"]
        assert main(["train", *flags, "--max_steps", "1", "--output_dir", str(root / "output/finished")]) == 0
        unfinished = parse([*flags, "--max_steps", "100", "--output_dir", str(root / "output/interrupted")])
        with pytest.raises(KeyboardInterrupt):
            run_sft(unfinished, callbacks=[Interrupted()])
        yield root


def _write_models(root: Path) -> None:
    tiny = ROOT / "data/tiny_llama"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = None
    shutil.copytree(tiny, root / "my_plain_model")
    save_tokenizer(tokenizer, root / "my_plain_model")
    (root / "my_plain_model/chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<sum>"])
    save_tokenizer(tokenizer, root / "my_larger_tokenizer")
    config = LlamaConfig.from_pretrained(tiny, hidden_size=64)
    LlamaForCausalLM(config).save_pretrained(root / "my_wider_model")
    save_tokenizer(AutoTokenizer.from_pretrained(tiny), root / "my_wider_model")


def inside(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs `loramoe` in this process."""
    capsys.readouterr()
    try:
        code = main(argv)
    except SystemExit as stop:  # of argparse
        code = int(stop.code or 0)
    return code, "".join(capsys.readouterr())


def outside(command: str, places: Path) -> tuple[int, str]:
    """Runs a script where the page's files are, which is not the folder of this project."""
    command = command.replace("run_loramoe.sh", str(ROOT / "run_loramoe.sh"), 1)
    command = re.sub("^python", f"{sys.executable} -I", command)
    environment = os.environ | {"PYTHON": sys.executable}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(["bash", "-c", command], cwd=places, env=environment, check=False, **streams)
    return done.returncode, done.stdout


def printed_by(command: str, places: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of the page prints, with the page's names of places."""
    if "run_loramoe.sh" in command or command.startswith("python"):
        code, said = outside(command, places)
    else:
        words = [word for part in shlex.split(command) for word in (FLAGS if part == "…" else [part])]
        words = [re.sub(rf"^({'|'.join(PLACES)})(?=/|$)", rf"{places}/\1", word) for word in words]
        words += ["--use_cpu", "true", "--disable_tqdm", "true"] if words[1] == "train" else []
        code, said = inside(words[1:], capsys)
    assert (code == 0) == ("--dry_run" in command)
    return said.replace(f"{places}/", "").replace(str(ROOT), HOME)


@pytest.mark.parametrize(("command", "expected"), CASES)
def test_a_command_prints_what_the_page_says(
    command: str,
    expected: str,
    places: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if "Out of memory" in request.node.name:  # which no CPU shows

        def run_out(arguments: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(program, "run_sft", run_out)
    said = printed_by(command, places, capsys)
    assert f"\n{expected}\n" in f"\n{said}\n"


def test_every_mistake_has_a_command() -> None:
    mistakes = [(title, body) for title, body in SECTION.findall(PAGE) if f"\n### {title}\n" in PAGE]
    without = [title for title, body in mistakes if not CASE.search(body)]
    assert without == ["A data set of the hub that cannot be reached"]
