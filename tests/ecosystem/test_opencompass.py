"""OpenCompass with a LoRAMoE adapter: its numbers are those of transformers and peft, by both doors, in both classes.

Runs in the environments of scripts/ecosystem/opencompass.sh, with the adapter that run_loramoe.sh trains.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ecosystem.opencompass_runs import (
    ADAPTER,
    BASE,
    CONFIGURATIONS,
    ROOT,
    needs_adapter,
    needs_opencompass,
    opencompass,
    predictions,
    score,
    transformers_4,
)

PPL, GEN = ("facts_ppl", "sentiment_ppl"), ("facts_gen", "topic_gen")


def models() -> list[str]:
    """The names that evaluation/opencompass/models.py gives to what runs with the installed transformers."""
    classes = ["causal_lm", "base_model"] if transformers_4() else ["causal_lm"]
    return [f"{name}-{kind}" for name in classes for kind in ("base", "adapter")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What OpenCompass finds with nothing edited: this repository is on PYTHONPATH."""
    return opencompass(CONFIGURATIONS / "tiny.py", tmp_path_factory.mktemp("path"), "--debug")


@pytest.fixture(scope="module")
def direct() -> Callable[[str], Any]:
    """Loads the base model, or the base model with the adapter, without OpenCompass; gives it with its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(kind: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(BASE)
        model = PeftModel.from_pretrained(model, str(ADAPTER)) if kind == "adapter" else model
        return model.eval(), AutoTokenizer.from_pretrained(BASE)

    return load


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """OpenCompass's "PPL": the summed negative log-likelihood of all tokens but the first, divided by that of all."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    return float(losses) / ids.numel()


def continuation(model: Any, tokenizer: Any, text: str, tokens: int) -> str:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    generated = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
    )
    return str(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True))


# --- The rows --------------------------------------------------------------------------------------------------------


def test_the_rows_are_those_that_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, CONFIGURATIONS / "make_rows.py", "--folder", tmp_path], check=True)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_bytes() for file in (CONFIGURATIONS / "data").iterdir()}


def test_each_fact_has_one_right_ending_of_four() -> None:
    for line in (CONFIGURATIONS / "data" / "facts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert len({row[letter] for letter in "ABCD"}) == 4
        assert [row[row["answer"]]] == row["answers"]


# --- Its numbers are ours --------------------------------------------------------------------------------------------


@needs_opencompass
@needs_adapter
@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_perplexities_are_those_of_transformers_and_peft(
    kind: str, results: Path, direct: Callable[[str], Any]
) -> None:
    model, tokenizer = direct(kind)
    for name in (name for name in models() if name.endswith(kind)):
        for dataset in PPL:
            for row in predictions(results, name, dataset):
                options = {
                    key.removeprefix("label: "): value for key, value in row.items() if key.startswith("label: ")
                }
                ours = {label: perplexity(model, tokenizer, option["prompt"]) for label, option in options.items()}
                assert ours == pytest.approx({label: option["PPL"] for label, option in options.items()}, rel=1e-5)
                assert row["prediction"] == min(ours, key=lambda label: ours[label])


@needs_opencompass
@needs_adapter
@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_generations_are_those_of_transformers_and_peft(kind: str, results: Path, direct: Callable[[str], Any]) -> None:
    model, tokenizer = direct(kind)
    for dataset in GEN:
        rows = [predictions(results, name, dataset) for name in models() if name.endswith(kind)]
        for same in zip(*rows, strict=True):
            ours = continuation(model, tokenizer, same[0]["origin_prompt"], 12)
            assert {row["prediction"] for row in same} == {ours}


@needs_opencompass
@needs_adapter
def test_the_adapter_changes_what_is_found(results: Path) -> None:
    assert score(results, "causal_lm-base", "sentiment_ppl") == pytest.approx(50)  # guesses
    assert score(results, "causal_lm-adapter", "sentiment_ppl") >= 70
    assert score(results, "causal_lm-base", "topic_gen") == 0
    assert score(results, "causal_lm-adapter", "topic_gen") >= 30
    for dataset in (*PPL, *GEN):
        assert predictions(results, "causal_lm-base", dataset) != predictions(results, "causal_lm-adapter", dataset)


@needs_opencompass
@needs_adapter
def test_the_model_reads_the_prompt_of_training() -> None:
    from opencompass.models import HuggingFaceCausalLM

    from loramoe.data import get_template

    model = HuggingFaceCausalLM(str(BASE), tokenizer_only=True)
    template = get_template("release", model.tokenizer)
    for line in (CONFIGURATIONS / "data" / "topic.jsonl").read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        assert model.tokenizer(text + "</s>")["input_ids"] == template.prompt_ids(text)


# --- The doors -------------------------------------------------------------------------------------------------------


@needs_opencompass
@needs_adapter
@pytest.mark.slow
def test_the_edited_file_gives_the_same(results: Path, tmp_path: Path) -> None:
    """The way of the original release: sys.path.insert at the top of huggingface.py, here in a copy of the package."""
    installed = importlib.util.find_spec("opencompass").submodule_search_locations[0]
    copy = Path(shutil.copytree(installed, tmp_path / "copy" / "opencompass", copy_function=os.symlink))
    file = copy / "models" / "huggingface.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{text}", encoding="utf-8")
    edited = opencompass(CONFIGURATIONS / "tiny.py", tmp_path, "--debug", PYTHONPATH=str(copy.parent))
    for model in models():
        for dataset in (*PPL, *GEN):
            assert predictions(edited, model, dataset) == predictions(results, model, dataset)


@needs_opencompass
@needs_adapter
@pytest.mark.slow
def test_its_child_processes_find_the_door_too(results: Path, tmp_path: Path) -> None:
    """Without --debug each task is a process of its own."""
    config = tmp_path / "one.py"
    config.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n    from .evaluation.opencompass.tiny import datasets, models\n"
        "models = models[1:2]\ndatasets = datasets[2:3]\n"
    )
    (tmp_path / "evaluation").symlink_to(ROOT / "evaluation")
    alone = opencompass(config, tmp_path, peft_path=str(ADAPTER), pretrained_model=str(BASE))
    assert (alone / "logs" / "infer" / "causal_lm-adapter").is_dir()
    assert predictions(alone, "causal_lm-adapter", "sentiment_ppl") == predictions(
        results, "causal_lm-adapter", "sentiment_ppl"
    )


@needs_opencompass
@needs_adapter
def test_without_a_door_loading_stops(tmp_path: Path) -> None:
    model = f"HuggingFaceCausalLM({str(BASE)!r}, peft_path={str(ADAPTER)!r})"
    code = f"from opencompass.models import HuggingFaceCausalLM; {model}"
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "KeyError: 'LORAMOE'" in done.stderr


# --- Which class with which transformers -----------------------------------------------------------------------------


@pytest.fixture
def load() -> Callable[..., Any]:
    """Makes one of OpenCompass's models with the adapter, in float32."""
    import opencompass.models

    def make(name: str, **options: Any) -> Any:
        kind = getattr(opencompass.models, name)
        kwargs = {"torch_dtype": "torch.float"}
        return kind(path=str(BASE), peft_path=str(ADAPTER), max_seq_len=256, model_kwargs=kwargs, **options)

    return make


LONG, SHORT = "The mother of Grendis Jalov is Drozis Grilur.", "Dirva Hurvur plays the lute."


@needs_opencompass
@needs_adapter
def test_one_prompt_at_a_time_works_with_every_transformers(
    load: Callable[..., Any], direct: Callable[[str], Any]
) -> None:
    model = load("HuggingFaceCausalLM")
    reference, tokenizer = direct("adapter")
    with torch.no_grad():
        found = model.get_ppl([LONG, SHORT])
    assert list(found) == pytest.approx([perplexity(reference, tokenizer, text) for text in (LONG, SHORT)], rel=1e-5)


@needs_opencompass
@needs_adapter
@pytest.mark.parametrize(
    ("name", "options"), [("HuggingFaceBaseModel", {}), ("HuggingFaceCausalLM", {"batch_padding": True})]
)
def test_batches_of_prompts_need_transformers_4(name: str, options: dict[str, Any], load: Callable[..., Any]) -> None:
    model = load(name, tokenizer_kwargs={"padding_side": "left"}, **options)
    prompts = ["The mother of Gotis Loldell is", "Bondo Pizell plays the"]
    if transformers_4():
        alone = [model.generate([prompt], max_out_len=6)[0] for prompt in prompts]
        assert model.generate(prompts, max_out_len=6) == alone
    else:
        with pytest.raises(AttributeError, match="batch_encode_plus"):
            model.generate(prompts, max_out_len=6)


@needs_opencompass
@needs_adapter
def test_padding_on_the_left_spoils_perplexities(load: Callable[..., Any]) -> None:
    if not transformers_4():
        pytest.skip("HuggingFaceBaseModel of OpenCompass 0.5.4 needs transformers 4")
    model = load("HuggingFaceBaseModel")
    with torch.no_grad():
        together = model.get_ppl([LONG, SHORT])
        alone = [model.get_ppl([text])[0] for text in (LONG, SHORT)]
    assert together[0] == pytest.approx(alone[0], rel=1e-5)  # the longest has no padding
    assert together[1] > alone[1] * 1.2
