"""lm-eval scores and generates with a LoRAMoE adapter what transformers and peft do without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed here: scripts/ecosystem/lm_eval.sh")

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "evaluation" / "lm_eval"
BASE = "data/tiny_llama"
LIMIT = 12
ABSENT = {"hotpotqa", "hotpot_qa", "axg", "super_glue_axg", "filtered_triviaqa", "filtered_nq", "race_middle"}
"""Names under which one would look for what docs/evaluation.md says lm-eval does not ship."""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter on the embedded base model, with weights that change what it says."""
    from peft import LoraMoeConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraMoeConfig(init_lora_weights=False, lora_alpha=64, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(ROOT / BASE), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(adapter: str) -> Any:
    """The adapted model as transformers and peft load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ROOT / BASE), adapter).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / BASE)


@pytest.fixture(scope="module")
def samples(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """What lm-eval asked and got, by task: `samples(peft=True, batch_size=8)`; each evaluation runs once."""
    import datasets
    from lm_eval.tasks import TaskManager

    done: dict[tuple[bool, int], Any] = {}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)

    def evaluate(peft: bool = True, batch_size: int = 8) -> Any:
        if (peft, batch_size) not in done:
            done[peft, batch_size] = lm_eval.simple_evaluate(
                model="hf",
                model_args=f"pretrained={BASE}" + (f",peft={adapter}" if peft else ""),
                tasks=["loramoe_tiny"],
                task_manager=manager,
                batch_size=batch_size,
                device="cpu",
                limit=LIMIT,
                bootstrap_iters=0,
            )["samples"]
        return done[peft, batch_size]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the tasks name their data from there, as the command on the page does
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield evaluate


def likelihoods(samples: Any) -> list[float]:
    return [score for sample in samples["loramoe_tiny_choice"] for score, _ in sample["filtered_resps"]]


def texts(samples: Any, task: str) -> list[str]:
    return [sample["resps"][0][0] for sample in samples[task]]


@torch.inference_mode()
def direct_likelihood(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Log-likelihood of the answer's tokens after the prompt, one row without padding."""
    logits_SV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits_SV.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()


def direct_likelihoods(model: Any, tokenizer: Any, samples: Any) -> list[float]:
    """The same for all choices of all samples, laid out by the template of the training."""
    from loramoe.data import conversation, get_template

    template = get_template("release", tokenizer)
    scores = []
    for document in (sample["doc"] for sample in samples["loramoe_tiny_choice"]):
        for choice in document["choices"]:
            encoded = template.encode([conversation(document["instruction"], document["input"], choice)])[0]
            scores.append(direct_likelihood(model, encoded.prompt, encoded.target[:-1]))  # without the end of text
    return scores


@torch.inference_mode()
def direct_text(model: Any, tokenizer: Any, prompt: str, stops: list[str], count: int) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=count, do_sample=False)[0, ids.input_ids.shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    return re.split("|".join(map(re.escape, stops)), text)[0]


def test_log_likelihoods_are_those_of_transformers_and_peft(samples, model, tokenizer):
    found = samples()
    assert len(likelihoods(found)) > LIMIT
    assert likelihoods(found) == pytest.approx(direct_likelihoods(model, tokenizer, found), rel=1e-5, abs=1e-5)


def test_log_likelihoods_without_an_adapter_are_those_of_the_base_model(samples, model, tokenizer):
    found = samples(peft=False)
    with model.disable_adapter():
        expected = direct_likelihoods(model, tokenizer, found)
    assert likelihoods(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_adapter_makes_a_difference(samples):
    pairs = zip(likelihoods(samples()), likelihoods(samples(peft=False)), strict=True)
    assert all(abs(adapted - base) > 1e-3 for adapted, base in pairs)
    assert texts(samples(), "loramoe_tiny_answer") != texts(samples(peft=False), "loramoe_tiny_answer")


@pytest.mark.parametrize("task", ["loramoe_tiny_answer", "loramoe_tiny_recall"])
def test_generation_is_that_of_generate(task, samples, model, tokenizer):
    for sample in samples()[task]:
        prompt, options = sample["arguments"][0]
        expected = direct_text(model, tokenizer, prompt, options["until"], options["max_gen_toks"])
        assert sample["resps"][0][0] == expected


def test_the_batch_size_changes_nothing(samples):
    assert likelihoods(samples(batch_size=1)) == pytest.approx(likelihoods(samples()), rel=1e-5, abs=1e-5)
    for task in ("loramoe_tiny_answer", "loramoe_tiny_recall"):
        assert texts(samples(batch_size=1), task) == texts(samples(), task)


def test_recall_is_that_of_loramoe_recall(samples, model, tokenizer):
    from loramoe.recall import read_probes, recall

    known = recall(model, tokenizer, read_probes(ROOT / "data/tiny_data/recall.json")[:LIMIT], progress=False)
    assert 0 < sum(known) < LIMIT
    assert [sample["exact_match"] == 1 for sample in samples()["loramoe_tiny_recall"]] == known


@pytest.mark.slow
def test_the_names_for_the_papers_benchmarks_are_those_that_lm_eval_ships():
    from lm_eval.tasks import TaskManager

    names = yaml.safe_load((TASKS / "paper.yaml").read_text())["task"]
    shipped = TaskManager(include_path=str(TASKS))
    assert set(names) <= set(shipped.all_subtasks)
    assert not ABSENT & set(shipped.all_tasks)


@pytest.mark.slow
def test_the_command_on_the_page_prints_all_tasks(adapter: str, tmp_path: Path):
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    command = re.search(r"^PYTHONPATH=\. lm_eval .*--tasks loramoe_tiny$", page, re.MULTILINE)
    assert command is not None
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    line = command[0].replace("output/tiny_llama/sft_lora_model", adapter) + f" --limit 2 --output_path {tmp_path}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    assert set(results) >= {"loramoe_tiny_answer", "loramoe_tiny_choice", "loramoe_tiny_recall"}
