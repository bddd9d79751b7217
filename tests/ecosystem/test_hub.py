"""An adapter on the hub: pushed by `train.py` and by `push_to_hub`, it loads again by its name, through every door.

The hub is a server of ours on 127.0.0.1 (hub_server.py); huggingface_hub, PEFT and transformers are the installed ones.
They read the hub's address when they are imported, so every step is a process of its own, as a user's would be.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import ModelCard

from loramoe.training.checkpoint import ADAPTER
from tests.ecosystem.hub_server import TOKEN, Hub, serving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Pushed(NamedTuple):
    """A run that `train.py` has pushed."""

    hub: Hub
    output_dir: Path
    base: Path
    said: str
    cache: Path


def run(hub: Hub, cache: Path, *command: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
    env = {**os.environ, **settings, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    env.pop("HF_TOKEN", None)
    env["HF_DATASETS_CACHE"] = str(cache / "datasets")
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def python(pushed: Pushed, code: str) -> Any:
    """Runs code in a process of its own that may write to the hub; gives back the JSON that it prints last."""
    head = f"""import json, os, torch
os.environ["HF_TOKEN"] = {TOKEN!r}
import loramoe
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
local, name = {str(pushed.output_dir / ADAPTER)!r}, "user/mine"
def base(): return AutoModelForCausalLM.from_pretrained({str(pushed.base)!r})
@torch.no_grad()
def logits(model): return model.eval()(input_ids=torch.arange(3, 23).reshape(2, 10)).logits
"""
    done = run(pushed.hub, pushed.cache, "-c", head + code)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pushed(tiny_task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    output_dir, cache = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("hf_home")
    flags = tiny_task.flags(output_dir, recall_file=tiny_task.recall_file, push_to_hub="true")
    flags += ["--hub_model_id", "user/mine", "--hub_token", TOKEN]
    with serving() as hub:
        done = run(hub, cache, "train.py", *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        yield Pushed(hub, output_dir, tiny_task.base, done.stdout, cache)


def test_the_adapter_is_pushed_in_one_commit_with_card_and_figure(pushed: Pushed):
    folder = pushed.output_dir / ADAPTER
    on_disk = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert pushed.hub.files["user/mine"] == on_disk
    assert {"README.md", "experts_groups.png", "adapter_model.safetensors", "tokenizer.json"} <= on_disk.keys()
    assert pushed.hub.commits["user/mine"] == [("main", sorted(on_disk))]
    assert f"Pushed: {pushed.hub.url}/user/mine/commit/" in pushed.said


def test_no_secret_and_nothing_of_the_run_goes_with_it(pushed: Pushed):
    files = pushed.hub.files["user/mine"]
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth")) or "arguments" in name]
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    # The configuration names the base model, as that of every PEFT adapter does; nothing else names a path.
    private = [str(pushed.output_dir), str(pushed.base), str(ROOT), str(Path.home())]
    named = {name for name, content in files.items() if any(path.encode() in content for path in private)}
    assert named == {"adapter_config.json"}


def test_the_card_tells_what_was_measured_and_nobodys_name(pushed: Pushed):
    card = ModelCard(pushed.hub.files["user/mine"]["README.md"].decode())
    metrics = json.loads((pushed.output_dir / "metrics.json").read_text())
    told = {(r.metric_type, r.metric_name.split()[-2]): r.metric_value for r in card.data.eval_results}
    for when, values in metrics.items():
        for name in ("loss", "perplexity"):
            assert told[name, when] == float(f"{values[name]:.4g}")
    assert len(told) == 6
    assert card.data.base_model is None
    assert 'adapter = "user/mine"' in card.text
    rows = ("| `learning_rate` | 0.01 |", "| samples to train on | 48 |", "| validation samples | 12 |", "| `r` | 4 |")
    for row in (*rows, "| steps | 6 (0.5 epochs) |", "| base model in | float32 |"):
        assert row in card.text
    assert "| samples of task type 1 | 24 (knowledge; experts 0, 1, 2, 3) |" in card.text
    assert json.loads((pushed.output_dir / "arguments.json").read_text())["training_data"] in card.text
    words = {word.strip("`|[](),.:;") for word in card.text.split()}
    assert not words & {getpass.getuser(), os.uname().nodename}


def test_it_loads_by_its_name_through_every_door(pushed: Pushed):
    equal = python(pushed, """
expected = logits(PeftModel.from_pretrained(base(), local))
doors = {
    "base alone": base(),
    "PeftModel": PeftModel.from_pretrained(base(), name),
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(name),
    "AutoModel": AutoModelForCausalLM.from_pretrained(name),
    "load_adapter": base(),
}
doors["load_adapter"].load_adapter(name)
assert AutoTokenizer.from_pretrained(name).eos_token == "</s>"
print(json.dumps({door: torch.equal(logits(model), expected) for door, model in doors.items()}))
""")  # fmt: skip
    assert equal == {
        "base alone": False,
        "PeftModel": True,
        "AutoPeftModel": True,
        "AutoModel": True,
        "load_adapter": True,
    }


def test_push_to_hub_of_a_model_works_and_keeps_a_card_that_is_there(pushed: Pushed):
    before = ModelCard(pushed.hub.files["user/mine"]["README.md"].decode())
    equal = python(pushed, """
model = PeftModel.from_pretrained(base(), local)
model.push_to_hub(name)
model.push_to_hub("user/another")
print(json.dumps(torch.equal(logits(PeftModel.from_pretrained(base(), "user/another")), logits(model))))
""")  # fmt: skip
    assert equal
    mine, another = (pushed.hub.files[name] for name in ("user/mine", "user/another"))
    assert another.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert another["adapter_model.safetensors"] == mine["adapter_model.safetensors"]
    after = ModelCard(mine["README.md"].decode())
    assert after.text.strip() == before.text.strip()
    assert after.data.to_dict() == before.data.to_dict()


def test_a_token_that_does_not_fit_is_told_in_one_line_before_the_training(pushed: Pushed, tiny_task, tmp_path: Path):
    flags = tiny_task.flags(tmp_path / "run", push_to_hub="true", hub_model_id="user/mine", hub_token="hf_wrong")
    done = run(pushed.hub, pushed.cache, "train.py", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("loramoe train: push_to_hub: there can be no repository user/mine")
    assert "Traceback" not in done.stderr
    assert "hf_wrong" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()
