"""LLaMA-Factory trains a new LoRAMoE adapter by the four commands of docs/ecosystem.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory: bash scripts/ecosystem/llamafactory.sh")

from datasets import Dataset, DatasetDict, load_from_disk
from peft import LoraMoeConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.data import DatasetError, Sample, conversation
from loramoe.integrations.llamafactory import add_task_types
from tests.ecosystem.reference import (
    BASE,
    EXAMPLES,
    assert_trained,
    by_tokens,
    first_samples,
    logged_losses,
    losses,
    run,
)


def follow(tmp_path: Path, count: int, config: dict[str, Any], *changes: str) -> tuple[Path, list[dict[str, Any]]]:
    """Does what the page says on the first samples of the tiny data; gives the adapter and the tokenised samples."""
    first_samples(tmp_path / "samples.json", count)
    info = json.loads((EXAMPLES / "dataset_info.json").read_text())
    info["tiny_rows"]["file_name"] = "samples.json"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    new, tokenised, typed, out = (str(tmp_path / name) for name in ("new", "tokenised", "typed", "adapter"))
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 32, "lora_nums": 8, "task_type": "CAUSAL_LM", **config}
    get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), LoraMoeConfig(**options)).save_pretrained(new)
    train = ["train", str(EXAMPLES / "llamafactory.yaml"), f"dataset_dir={tmp_path}", f"output_dir={out}"]
    run("llamafactory-cli", *train, "do_train=false", "adapter_name_or_path=null", f"tokenized_path={tokenised}")
    own = ["--data", str(tmp_path / "samples.json"), "--tokenised", tokenised, "--output_dir", typed]
    run("python", "-m", "loramoe.integrations.llamafactory", *own, "--tokenizer", str(BASE))
    run("llamafactory-cli", *train, f"adapter_name_or_path={new}", f"tokenized_path={typed}", *changes)
    return Path(out), load_from_disk(typed)["train"].to_list()


def test_the_constraint_is_in_the_loss(tmp_path: Path) -> None:
    strong = {"blc_alpha": 0.5, "blc_weight": 0.5, "lora_dropout": 0}
    adapter, samples = follow(tmp_path, 8, strong, "max_steps=1", "learning_rate=0.0", "disable_shuffling=true")
    assert logged_losses(adapter) == [pytest.approx(by_tokens(losses(adapter, samples, batch_size=4)), rel=1e-5)]


def test_the_example_trains_an_adapter_that_loads_without_llamafactory(tmp_path: Path) -> None:
    assert_trained(follow(tmp_path, 16, {"lora_nums": 6})[0], lora_nums=6)


def test_other_samples_are_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    samples = [Sample(conversation("Where?", "", "Tarvesh"), 1), Sample(conversation("What?", "", "mushrooms"), 0)]

    def tokenised(*answers: str) -> DatasetDict:
        labels = [[-100, *tokenizer.encode(answer, add_special_tokens=False)] for answer in answers]
        return DatasetDict(train=Dataset.from_dict({"labels": labels}))

    typed = add_task_types(samples, tokenised("Tarvesh", "mushr"), tokenizer)  # the second was cut
    assert typed["train"]["task_types"][:] == [1, 0]
    for answers, named in ((["Tarvesh"], "max_samples"), (["mushrooms", "Tarvesh"], "sample 1")):
        with pytest.raises(DatasetError, match=named):
            add_task_types(samples, tokenised(*answers), tokenizer)
