"""LLaMA-Factory trains a new LoRAMoE adapter by the four commands of docs/ecosystem.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("llamafactory", reason="needs LLaMA-Factory: bash scripts/ecosystem/llamafactory.sh")

from datasets import load_from_disk

from tests.ecosystem.reference import (
    ROOT,
    assert_trained,
    by_tokens,
    first_samples,
    logged_losses,
    losses,
    run,
)

NEW, TYPED = re.findall(r'^python -c "(.*?)"$', (ROOT / "docs/ecosystem.md").read_text(), re.DOTALL | re.MULTILINE)


def follow(tmp_path: Path, count: int, config: str, *changes: str) -> tuple[Path, list[dict[str, Any]]]:
    """Does what the page says on the first samples of the tiny data; gives the adapter and the tokenised samples."""
    first_samples(tmp_path / "samples.json", count)
    info = json.loads((ROOT / "examples/integrations/dataset_info.json").read_text())
    info["tiny_rows"]["file_name"] = "samples.json"
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    new, tokenised, typed, out = (str(tmp_path / name) for name in ("new", "tokenised", "typed", "adapter"))
    torch.manual_seed(0)
    exec(NEW.replace("output/llamafactory/new", new).replace("lora_nums=8", config))
    train = ["train", "examples/integrations/llamafactory.yaml", f"dataset_dir={tmp_path}", f"output_dir={out}"]
    run("llamafactory-cli", *train, "do_train=false", "adapter_name_or_path=null", f"tokenized_path={tokenised}")
    places = {"data/tiny_data/train/train.json": str(tmp_path / "samples.json")}
    places |= {"output/llamafactory/tokenised": tokenised, "output/llamafactory/typed": typed}
    command = TYPED
    for place, here in places.items():
        assert place in command
        command = command.replace(place, here)
    exec(command)
    run("llamafactory-cli", *train, f"adapter_name_or_path={new}", f"tokenized_path={typed}", *changes)
    return Path(out), load_from_disk(typed)["train"].to_list()


def test_the_constraint_is_in_the_loss(tmp_path: Path) -> None:
    strong = "lora_nums=8, blc_alpha=0.5, blc_weight=0.5, lora_dropout=0"
    adapter, samples = follow(tmp_path, 8, strong, "max_steps=1", "learning_rate=0.0", "disable_shuffling=true")
    assert logged_losses(adapter) == [pytest.approx(by_tokens(losses(adapter, samples, batch_size=4)), rel=1e-5)]


def test_the_example_trains_an_adapter_that_loads_without_llamafactory(tmp_path: Path) -> None:
    assert_trained(follow(tmp_path, 16, "lora_nums=6")[0], lora_nums=6)
