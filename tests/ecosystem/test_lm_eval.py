"""lm-eval with a LoRAMoE adapter: by its own command, and the benchmarks of the paper on stand-in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed here: scripts/ecosystem/lm_eval.sh")

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "evaluation" / "lm_eval"
PAPER = yaml.safe_load((TASKS / "paper.yaml").read_text())["task"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter on the embedded model, with weights that change what it says."""
    import torch
    from peft import LoraMoeConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraMoeConfig(init_lora_weights=False, lora_alpha=64, task_type="CAUSAL_LM")
    folder = str(tmp_path_factory.mktemp("adapter"))
    get_peft_model(AutoModelForCausalLM.from_pretrained(ROOT / "data/tiny_llama"), config).save_pretrained(folder)
    return folder


def run(folder: Path, *command: str) -> None:
    common = ["--include_path", "evaluation/lm_eval", "--tasks", "loramoe_paper_standin", "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
    environment = {**os.environ, **offline, "HF_HOME": str(folder / "cache")}
    line = [sys.executable, "-m", *command, *common]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def ours(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `loramoe evaluate`."""
    folder = tmp_path_factory.mktemp("ours")
    flags = ["--adapter", f"adapter={adapter}", "--max_new_tokens", "8", "--output_dir", str(folder / "out")]
    run(folder, "loramoe.cli", "evaluate", *flags)
    return folder / "out"


def test_the_stand_ins_are_those_of_the_paper() -> None:
    assert [entry["task"] for entry in yaml.safe_load((TASKS / "paper_standin.yaml").read_text())["task"]] == PAPER


@pytest.mark.slow
def test_every_benchmark_of_the_paper_runs_on_its_stand_in(ours: Path) -> None:
    results = {name: json.loads((ours / f"{name}.json").read_text()) for name in ("base", "adapter")}
    assert set(results["adapter"]["samples"]) == set(results["base"]["samples"]) == set(PAPER)
    lines = json.loads((ours / "results.json").read_text())["lines"]
    assert {line["task"] for line in lines} == {name for name in PAPER if "flores" not in name}  # BLEU is of a corpus


@pytest.mark.slow
def test_its_own_command_finds_the_same(adapter: str, ours: Path, tmp_path: Path) -> None:
    options = ["--log_samples", "--gen_kwargs", "max_gen_toks=8", "--output_path", str(tmp_path / "theirs")]
    run(tmp_path, "lm_eval", "--model", "hf", "--model_args", f"pretrained=data/tiny_llama,peft={adapter}", *options)
    logged = {name: json.loads((ours / f"{name}.json").read_text())["samples"] for name in ("base", "adapter")}
    for task in ("winogrande", "race", "multirc"):
        (file,) = (tmp_path / "theirs").rglob(f"samples_{task}_*.jsonl")
        theirs = [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]
        found = {name: likelihoods([sample["filtered_resps"] for sample in logged[name][task]]) for name in logged}
        assert found["adapter"] == pytest.approx(likelihoods(theirs), rel=1e-5)
        assert found["base"] != pytest.approx(found["adapter"], rel=1e-3)


def likelihoods(samples: list[Any]) -> list[float]:
    return [float(likelihood) for sample in samples for likelihood, _ in sample]
