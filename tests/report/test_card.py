"""The model card: its metadata as the hub reads it, its text, and what becomes of it when PEFT saves again."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel

from loramoe import LoraMoeConfig
from loramoe.report.card import CARD, CITATION, TAGS, Card, card_text, hub_name, metadata, write_card

ROOT = Path(__file__).parents[2]
RESULTS = {
    "before": {"loss": 2.0, "perplexity": 7.38906, "recall": 0.5},
    "after": {"loss": 1.0, "perplexity": 2.71828, "recall": 0.4},
}


def card(base_model: str = "meta-llama/Llama-2-7b-hf", **changes: Any) -> Card:
    config = changes.pop("config", {})
    values: dict[str, Any] = {
        "config": LoraMoeConfig(target_modules=["up_proj", "down_proj"], **config),
        "results": RESULTS,
        "training": {"`learning_rate`": 2e-4},
        "data": {"rows to train on": "800"},
        "versions": {"PEFT": "0.0"},
    }
    return Card(base_model=base_model, **{**values, **changes})


class TestMetadata:
    def test_a_base_model_of_the_hub_is_linked(self):
        data = metadata(card())
        assert (data.library_name, data.pipeline_tag, data.tags) == ("peft", "text-generation", list(TAGS))
        assert (data.base_model, data["base_model_relation"]) == ("meta-llama/Llama-2-7b-hf", "adapter")
        assert data.datasets is None

    @pytest.mark.parametrize("spelling", ["{}", "{}/"])
    def test_a_folder_is_never_given_for_a_name_on_the_hub(self, spelling: str, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = Path("data/tiny")  # as a name on the hub looks
        assert hub_name(str(folder)) == "data/tiny"
        folder.mkdir(parents=True)
        for name in (spelling.format(folder), spelling.format(folder.resolve())):
            of_a_folder = card(name)
            assert metadata(of_a_folder).to_dict().keys().isdisjoint({"base_model", "base_model_relation"})
            assert "for `tiny`" in card_text(of_a_folder, None)
            assert str(tmp_path) not in card_text(of_a_folder, None)

    def test_what_is_neither_a_folder_nor_a_name_is_no_name(self):
        assert hub_name("/nowhere/on this machine") is None

    def test_results_are_in_the_model_index(self):
        entry = metadata(card(repository="user/mine")).to_dict()["model-index"][0]
        assert entry["name"] == "mine"
        rows, facts = entry["results"]
        assert rows["task"] == {"type": "text-generation", "name": "Text generation"}
        assert [(m["type"], m["name"], m["value"]) for m in rows["metrics"]] == [
            ("loss", "evaluation loss after training", 1.0),
            ("loss", "evaluation loss before training", 2.0),
            ("perplexity", "perplexity after training", 2.718),
            ("perplexity", "perplexity before training", 7.389),
        ]
        assert [m["value"] for m in facts["metrics"]] == [0.4, 0.5]

    def test_an_infinite_perplexity_stands_in_the_text_alone(self):
        results = {"before": {}, "after": {"loss": 800.0, "perplexity": math.inf}}
        entry = metadata(card(results=results)).to_dict()["model-index"][0]
        assert [metric["type"] for metric in entry["results"][0]["metrics"]] == ["loss"]
        assert "| perplexity | – | inf |" in card_text(card(results=results), None)

    def test_without_results_there_is_no_model_index(self):
        nothing = card(results={"before": {}, "after": {}})
        assert "model-index" not in metadata(nothing).to_dict()
        assert "## Results" not in card_text(nothing, None)


class TestText:
    def test_the_configuration_is_told(self):
        text = card_text(card(config={"r": 6, "lora_nums": 3, "expert_types": [2, 1, 0], "use_rslora": True}), None)
        for row in ("`r` | 6", "`lora_nums` | 3", "`expert_types` | 2, 1, 0", "`use_rslora` | True"):
            assert f"| {row} |" in text
        assert "| `target_modules` | down_proj, up_proj |" in text
        assert "modules_to_save" not in text
        assert "3 LoRA experts of rank 6" in text

    @pytest.mark.parametrize(("target", "word"), [("paper", "*less*"), ("match", "*more*")])
    def test_the_direction_of_the_constraint_is_told(self, target: str, word: str):
        text = card_text(card(config={"blc_target": target, "blc_weight": 0.25}), None)
        assert f'of weight 0.25 and degree 0.1, in the direction `blc_target="{target}"`' in text
        assert f"pushed to {word} gate weight" in text

    def test_a_run_without_the_constraint_says_so(self):
        text = card_text(card(config={"blc_weight": 0}), None)
        assert "without the balancing constraint" in text
        assert "gate weight" not in text

    def test_an_expression_does_not_break_the_table(self):
        text = card_text(card(config={"exclude_modules": r"up|down"}), None)
        assert r"| `exclude_modules` | up\|down |" in text

    def test_before_and_after(self):
        assert "| recall | 0.5 | 0.4 |" in card_text(card(), None)

    def test_the_figure_is_copied_and_shown(self, tmp_path: Path):
        figure = tmp_path / "shares.png"
        figure.write_bytes(b"a figure")
        (tmp_path / "adapter").mkdir()
        write_card(card(), tmp_path / "adapter", figure)
        assert "](shares.png)" in (tmp_path / "adapter" / CARD).read_text()
        assert (tmp_path / "adapter" / "shares.png").read_bytes() == b"a figure"

    def test_card_and_figure_are_there_whole_or_not_at_all(self, tmp_path: Path, monkeypatch):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / CARD).write_text("earlier")

        def fail(self: ModelCard, file: Path) -> None:
            file.write_text("half of")
            raise OSError("disk full")

        monkeypatch.setattr(ModelCard, "save", fail)
        (tmp_path / "shares.png").write_bytes(b"a figure")
        with pytest.raises(OSError, match="disk full"):
            write_card(card(), tmp_path / "adapter", tmp_path / "shares.png")
        assert os.listdir(tmp_path / "adapter") == [CARD]
        assert (tmp_path / "adapter" / CARD).read_text() == "earlier"

    def test_the_citation_is_of_the_paper_that_the_repository_cites(self):
        cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
        authors = [f"{author['family-names']}, {author['given-names']}" for author in cited["authors"]]
        flat = " ".join(CITATION.split())
        assert f"author = {{{' and '.join(authors)}}}" in flat
        assert f"title = {{{cited['title']}}}" in flat
        assert f"year = {{{cited['year']}}}" in flat


def python_of(text: str) -> str:
    return text.partition("```python\n")[2].partition("```")[0]


def test_the_code_of_the_card_runs(saved: Path):
    shown = python_of(card_text(card(str(saved.parent / "base")), None))
    without_tokenizer = shown.replace("tokenizer = AutoTokenizer.from_pretrained(adapter)\n", "")
    code = without_tokenizer.replace('("base")', f'("{saved.parent / "base"}")') + "\nprint(type(model).__name__)"
    paths = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=saved, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    assert done.stdout == "PeftModelForCausalLM\n", done.stderr


def test_the_text_survives_when_peft_saves_again(saved: Path, tiny_llama):
    (saved / CARD).unlink()
    write_card(card(versions={"PEFT": "0.0"}), saved)
    before = ModelCard.load(saved / CARD)
    model = PeftModel.from_pretrained(tiny_llama(), saved)
    model.save_pretrained(saved)
    after = ModelCard.load(saved / CARD)
    new_line = [line for line in after.text.splitlines() if line not in before.text.splitlines()]
    assert [line[:7] for line in new_line] == ["- PEFT "]
    assert [line for line in after.text.splitlines() if line not in new_line] == before.text.splitlines()
    assert after.data.eval_results == before.data.eval_results
    assert (after.data.library_name, after.data.pipeline_tag) == ("peft", "text-generation")
