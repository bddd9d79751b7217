"""LLaMA-Factory goes on training a new LoRAMoE adapter, by the recipe of integrations/llamafactory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory: bash scripts/ecosystem/llamafactory.sh")

from datasets import Dataset, DatasetDict, load_from_disk
from transformers import AutoTokenizer

from integrations.llamafactory.add_task_types import add_task_types
from loramoe.data import DatasetError, Sample, conversation, read_samples
from tests.ecosystem.reference import BASE, ROOT, ROWS, by_tokens, load, logged_losses, losses, run, some_rows

RECIPE = ROOT / "integrations" / "llamafactory"


def follow(tmp_path: Path, count: int, flags: list[str], *overrides: str) -> tuple[Path, list[dict[str, Any]]]:
    """Does what README.md says, on the first rows of the tiny data; gives the adapter's folder and the samples."""
    some_rows(tmp_path / "rows.json", count)
    info = json.loads((RECIPE / "dataset_info.json").read_text())
    info["tiny_rows"]["file_name"] = "rows.json"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    new, tokenised, typed, out = (str(tmp_path / name) for name in ("new", "tokenised", "typed", "adapter"))
    train = ["train", str(RECIPE / "tiny.yaml"), f"dataset_dir={tmp_path}", f"output_dir={out}"]
    run("python", str(RECIPE / "new_adapter.py"), "--model_name_or_path", str(BASE), "--output", new, *flags)
    run("llamafactory-cli", *train, "do_train=false", "adapter_name_or_path=null", f"tokenized_path={tokenised}")
    added = [str(tmp_path / "rows.json"), tokenised, typed, "--tokenizer", str(BASE)]
    run("python", str(RECIPE / "add_task_types.py"), *added)
    run("llamafactory-cli", *train, f"adapter_name_or_path={new}", f"tokenized_path={typed}", *overrides)
    return Path(out), load_from_disk(typed)["train"].to_list()


def test_the_logged_loss_is_that_of_the_language_model_and_the_constraint(tmp_path: Path) -> None:
    strong = ["--blc_alpha", "0.5", "--blc_weight", "0.5", "--lora_dropout", "0"]
    step = ["max_steps=1", "learning_rate=0.0", "disable_shuffling=true"]
    adapter, samples = follow(tmp_path, 8, strong, *step)
    micro_batches = losses(adapter, samples, batch_size=4)
    assert min(micro.constraint for micro in micro_batches) > 0.05
    assert logged_losses(adapter) == [pytest.approx(by_tokens(micro_batches), rel=1e-5)]


def test_the_recipe_trains_an_adapter_that_loads_without_llamafactory(tmp_path: Path) -> None:
    adapter, samples = follow(tmp_path, 16, ["--lora_nums", "6"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    asked = {"peft_type": "LORAMOE", "lora_nums": 6, "r": 4, "lora_alpha": 32, "blc_alpha": 0.1, "blc_weight": 0.1}
    assert {name: config[name] for name in asked} == asked
    assert [sample["task_types"] for sample in samples] == [sample.task_type for sample in read_samples(ROWS)][:16]
    experts = {name: weight for name, weight in load(adapter).named_parameters() if name.endswith(".B")}
    assert len(experts) == 12
    assert all(weight.abs().sum() > 0 for weight in experts.values())


ROWS_OF_TWO = [
    Sample(conversation("Where?", "", "Tarvesh"), 1),
    Sample(conversation("What?", "", "mushrooms"), 0),
]


def tokenised(answers: list[str]) -> DatasetDict:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    labels = [[-100, *tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for answer in answers]
    return DatasetDict(train=Dataset.from_dict({"labels": labels}))


def test_rows_get_their_types() -> None:
    typed = add_task_types(ROWS_OF_TWO, tokenised(["Tarvesh", "mushr"]), AutoTokenizer.from_pretrained(BASE))
    assert typed["train"]["task_types"][:] == [1, 0]


def test_other_rows_are_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    with pytest.raises(DatasetError, match="the data has 2 rows, the tokenised data 1"):
        add_task_types(ROWS_OF_TWO, tokenised(["Tarvesh"]), tokenizer)
    with pytest.raises(DatasetError, match="row 1 answers 'Tarvesh', but the tokenised row 1 trains on 'mushrooms'"):
        add_task_types(ROWS_OF_TWO, tokenised(["mushrooms", "Tarvesh"]), tokenizer)
