"""An adapter on the hub: pushed by `train.py` and by `push_to_hub`, it loads and is exported by its name.

The hub is a server on 127.0.0.1. Libraries read its address at their import, so every step is a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loramoe.training.checkpoint import ADAPTER
from tests.ecosystem.hub_server import TOKEN, Hub, serving

ROOT = Path(__file__).parents[2]
LOAD = """
import sys, torch, loramoe
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, local, name = sys.argv[1:]
@torch.no_grad()
def logits(model): return model.eval()(input_ids=torch.arange(3, 23).reshape(2, 10)).logits
def plain(): return AutoModelForCausalLM.from_pretrained(base)
model = PeftModel.from_pretrained(plain(), local)
model.push_to_hub("user/another")
expected = logits(model)
assert not torch.equal(logits(plain()), expected)
added = plain()
added.load_adapter(name)
ways = [PeftModel.from_pretrained(plain(), name), AutoPeftModelForCausalLM.from_pretrained(name), added]
ways += [AutoModelForCausalLM.from_pretrained(name), PeftModel.from_pretrained(plain(), "user/another")]
assert [torch.equal(logits(way), expected) for way in ways] == [True] * 5
assert AutoTokenizer.from_pretrained(name).eos_token == "</s>"
"""


def run(hub: Hub, cache: Path, *words: str) -> str:
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache)}
    settings |= {"HF_TOKEN": TOKEN, "HF_DATASETS_CACHE": str(cache / "datasets"), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **settings, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_an_adapter_is_pushed_and_loads_by_its_name(tiny_task, tmp_path: Path) -> None:
    flags = tiny_task.flags(tmp_path / "run", push_to_hub="true", hub_model_id="user/mine")
    with serving() as hub:
        printed = run(hub, tmp_path, "train.py", *flags)
        folder = tmp_path / "run" / ADAPTER
        on_disk = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert hub.files["user/mine"] == on_disk
        assert hub.commits["user/mine"] == [("main", sorted(on_disk))]
        assert f"{hub.url}/user/mine/commit/" in printed
        assert not [name for name, content in on_disk.items() if TOKEN.encode() in content]
        private = [str(path).encode() for path in (tmp_path, tiny_task.base, ROOT, Path.home())]
        named = {name for name, content in on_disk.items() if any(path in content for path in private)}
        assert named == {"adapter_config.json"}, "PEFT names the base model there; nothing else names a path"
        run(hub, tmp_path, "-c", LOAD, str(tiny_task.base), str(folder), "user/mine")
        assert hub.files["user/another"]["adapter_model.safetensors"] == on_disk["adapter_model.safetensors"]
        words = ["--adapter", "user/mine", "--output_dir", str(tmp_path / "lora"), "--batch_size", "20"]
        run(hub, tmp_path, "-m", "loramoe.export", *words, "--calibration", str(tiny_task.test_file))
        assert (tmp_path / "lora" / "loramoe_prompt.json").read_bytes() == on_disk["loramoe_prompt.json"]
