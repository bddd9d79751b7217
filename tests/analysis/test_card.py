"""The model card: its metadata as the hub reads it, its text, and what remains of it when PEFT saves again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import TrainingArguments

from loramoe import LoraMoeConfig
from loramoe.analysis.card import CARD, TAGS, write_card

RESULTS = {"before": {"loss": 2.0}, "after": {"loss": 1.0, "recall": 0.4}}
HUB_NAME = "meta-llama/Llama-2-7b-hf"


@pytest.fixture
def card(tmp_path: Path) -> Any:
    """Writes a card and reads it: `card(base_model, config=…, conclusion=…)`."""

    def write(base_model: str = HUB_NAME, folder: Path = tmp_path / "adapter", **changes: Any) -> ModelCard:
        config = LoraMoeConfig(target_modules=["up_proj", "down|proj"], **changes.pop("config", {}))
        args = TrainingArguments(tmp_path, use_cpu=True, report_to=[], learning_rate=2e-4)
        state = SimpleNamespace(global_step=1500, epoch=3.0)
        values = {"results": RESULTS, "args": args, "state": state, "data": "48 samples\n1 cut"}
        write_card(folder, config, base_model, **values | changes)
        return ModelCard.load(folder / CARD)

    return write


def test_the_metadata_link_a_base_model_on_the_hub(card):
    data = card().data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("peft", "text-generation", TAGS)
    assert (data.base_model, data["base_model_relation"]) == (HUB_NAME, "adapter")


@pytest.mark.parametrize("folder", ["data/tiny/", "/not/on this machine/tiny"])
def test_a_folder_is_no_name_on_the_hub(card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    written = card(folder)
    assert written.data.to_dict().keys().isdisjoint({"base_model", "base_model_relation"})
    assert "for `tiny`" in written.text
    assert str(tmp_path) not in written.text


def test_the_text_names_configuration_results_and_training(card, tmp_path: Path):
    figure = tmp_path / "figure.png"
    figure.write_bytes(b"a figure")
    config = {"r": 6, "lora_nums": 3, "expert_types": [2, 1, 0], "blc_target": "paper", "blc_weight": 0.25}
    text = card(config=config, figure=figure, conclusion="A separation.").text
    for row in ("`r` | 6", "`expert_types` | 2, 1, 0", r"`target_modules` | down\|proj, up_proj", "recall | – | 0.4"):
        assert f"|\n| {row} |\n" in text
    for row in ("`learning_rate` | 0.0002", "steps | 1,500 (3 epochs)", "training data | 48 samples, 1 cut"):
        assert f"|\n| {row} |\n" in text
    for part in ("of weight 0.25", "*less*", "\n\nA separation.\n\n|", "](figure.png)\n\n##"):
        assert part in text
    assert (tmp_path / "adapter" / "figure.png").read_bytes() == b"a figure"
    assert "`use_rslora`" not in text


def test_parts_that_are_unknown_are_left_out(card):
    text = card(config={"blc_weight": 0}, results={"before": {}, "after": {}}).text
    assert "without the balancing constraint" in text
    assert "## Results" not in text


def test_the_code_of_the_card_runs(card, saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(saved)
    shown = card(str(saved.parent / "base")).text.partition("```python\n")[2].partition("```")[0]
    code = shown.replace("tokenizer = AutoTokenizer.from_pretrained(adapter)\n", "")
    names: dict[str, Any] = {}
    exec(code.replace('("base")', f'("{saved.parent / "base"}")'), names)
    assert isinstance(names["model"], PeftModel)


def test_the_text_remains_when_peft_saves_again(card, saved: Path, tiny_llama):
    before = card(folder=saved)
    PeftModel.from_pretrained(tiny_llama(), saved).save_pretrained(saved)
    after = ModelCard.load(saved / CARD)
    assert set(before.text.splitlines()) <= set(after.text.splitlines())
    assert (after.data.library_name, after.data.pipeline_tag) == ("peft", "text-generation")
