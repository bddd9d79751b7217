"""OpenCompass with a LoRAMoE adapter: its numbers are those of transformers and peft, by both entry points.

Runs in the environments of scripts/ecosystem/opencompass.sh, with the adapter that run_loramoe.sh trains.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("opencompass", reason="opencompass is not installed: scripts/ecosystem/opencompass.sh")

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = ROOT / "evaluation" / "opencompass"
BASE, ADAPTER = ROOT / "data" / "tiny_llama", ROOT / "output" / "tiny_llama" / "sft_lora_model"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
PPL, GEN = ("facts_ppl", "sentiment_ppl"), ("facts_gen", "topic_gen")

if not ADAPTER.exists():
    pytest.skip(f"no adapter at {ADAPTER}: run_loramoe.sh trains it", allow_module_level=True)


def transformers_4() -> bool:
    """Whether the installed transformers still has what OpenCompass 0.5.4 batches with."""
    import transformers

    return transformers.__version__.startswith("4.")


def models(kind: str) -> list[str]:
    return [f"{name}-{kind}" for name in (["causal_lm", "base_model"] if transformers_4() else ["causal_lm"])]


def opencompass(config: Path, folder: Path, **variables: str) -> Path:
    """Runs OpenCompass in a folder of its own, and gives the folder of its results."""
    command = [sys.executable, "-m", "opencompass.cli.main", str(config), "-w", str(folder / "runs"), "--debug"]
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (results,) = (folder / "runs").iterdir()
    return results


def predictions(results: Path, model: str, dataset: str) -> list[dict[str, Any]]:
    rows = json.loads((results / "predictions" / model / f"{dataset}.json").read_text(encoding="utf-8"))
    return [rows[str(number)] for number in range(len(rows))]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What OpenCompass finds with nothing edited: this repository is on PYTHONPATH."""
    return opencompass(CONFIGURATIONS / "tiny.py", tmp_path_factory.mktemp("path"))


@pytest.fixture(params=["base", "adapter"])
def direct(request: pytest.FixtureRequest) -> Any:
    """The base model, or the base model with the adapter, without OpenCompass: its kind, itself, its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(BASE)
    model = PeftModel.from_pretrained(model, str(ADAPTER)) if request.param == "adapter" else model
    return request.param, model.eval(), AutoTokenizer.from_pretrained(BASE)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """OpenCompass's "PPL": the summed negative log-likelihood of all tokens but the first, divided by that of all."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    return float(losses) / ids.numel()


def test_perplexities_are_those_of_transformers_and_peft(results: Path, direct: Any) -> None:
    kind, model, tokenizer = direct
    for name in models(kind):
        for row in (row for dataset in PPL for row in predictions(results, name, dataset)):
            options = {key: value for key, value in row.items() if key.startswith("label: ")}
            ours = {label: perplexity(model, tokenizer, option["prompt"]) for label, option in options.items()}
            assert ours == pytest.approx({label: option["PPL"] for label, option in options.items()}, rel=1e-5)
            assert f"label: {row['prediction']}" == min(ours, key=lambda label: ours[label])


def test_generations_are_those_of_transformers_and_peft(results: Path, direct: Any) -> None:
    kind, model, tokenizer = direct
    for name in models(kind):
        for row in (row for dataset in GEN for row in predictions(results, name, dataset)):
            ids = torch.tensor([tokenizer(row["origin_prompt"])["input_ids"]])
            new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
            assert row["prediction"] == tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_model_reads_the_prompt_of_training(direct: Any) -> None:
    from loramoe.data import conversation, get_template

    *_, tokenizer = direct
    for line in (CONFIGURATIONS / "data" / "topic.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        prompt = get_template("release", tokenizer).chat_ids(conversation(text, "", "")[:1])
        assert tokenizer(text + "</s>")["input_ids"] == prompt


@pytest.mark.slow
def test_the_edited_file_gives_the_same(results: Path, tmp_path: Path) -> None:
    """The way of the original code: sys.path.insert at the top of huggingface.py, here in a copy of the package."""
    spec = importlib.util.find_spec("opencompass")
    assert spec is not None
    installed = next(iter(spec.submodule_search_locations or []))
    copy = Path(shutil.copytree(installed, tmp_path / "copy" / "opencompass", copy_function=os.symlink))
    file = copy / "models" / "huggingface.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{text}", encoding="utf-8")
    edited = opencompass(CONFIGURATIONS / "tiny.py", tmp_path, PYTHONPATH=str(copy.parent))
    for name, dataset in ((name, dataset) for name in models("adapter") for dataset in (*PPL, *GEN)):
        assert predictions(edited, name, dataset) == predictions(results, name, dataset)


def test_without_an_entry_point_loading_stops(tmp_path: Path) -> None:
    code = f"from opencompass.models import HuggingFaceCausalLM as M; M({str(BASE)!r}, peft_path={str(ADAPTER)!r})"
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "KeyError: 'LORAMOE'" in done.stderr


@pytest.mark.slow
def test_every_benchmark_of_the_paper_runs_on_stand_in_files(tmp_path: Path) -> None:
    """They show that files in these places and forms are read, asked about and scored; not what a model can do."""
    run = opencompass(CONFIGURATIONS / "benchmarks.py", tmp_path, COMPASS_DATA_CACHE=str(CONFIGURATIONS / "standin"))
    found = sorted(path.stem for path in (run / "results" / "causal_lm-adapter").glob("*.json"))
    generated = "base_model" if transformers_4() else "causal_lm"
    found += [path.stem for path in (run / "results" / f"{generated}-adapter").glob("*.json") if path.stem not in found]
    assert len(found) == 24
    for file in (run / "results").glob("*/*.json"):
        scores = json.loads(file.read_text())
        assert "error" not in scores
        assert any(isinstance(value, (int, float)) for value in scores.values()), scores
        asked = json.dumps(predictions(run, file.parent.name, file.stem))
        assert not re.search(r"[^{]\{\w+\}", asked), "a column that the prompt names is missing"
