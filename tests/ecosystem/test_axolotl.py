"""axolotl trains `adapter: loramoe` with the plugin of integrations/axolotl, on the configuration that stands there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("axolotl", reason="needs axolotl: bash scripts/ecosystem/axolotl.sh")

from axolotl.datasets import TokenizedPromptDataset
from axolotl.utils.dict import DictDefault
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer

from integrations.axolotl import LoraMoePlugin, typed_rows
from integrations.axolotl.plugin import adapter_config
from tests.ecosystem.reference import BASE, ROOT, load, logged_losses, losses, run, some_rows

TINY = ROOT / "integrations" / "axolotl" / "tiny.yaml"
FIRST_STEP = {"max_steps": 1, "learning_rate": 0, "lora_dropout": 0, "blc_alpha": 0.5, "blc_weight": 0.5}
IN_ORDER = {"shuffle_merged_datasets": False, "curriculum_sampling": True}

Train = Callable[..., tuple[Path, list[dict[str, Any]]]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs axolotl on the first rows of the tiny data; gives the adapter's folder and the samples as it made them."""

    def run_axolotl(count: int, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
        some_rows(tmp_path / "rows.json", count)
        config = yaml.safe_load(TINY.read_text())
        config["datasets"][0]["path"] = str(tmp_path / "rows.json")
        config |= {"dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "adapter")}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | changes))
        run("axolotl", "train", str(tmp_path / "config.yaml"), "--launcher", "python")
        (prepared,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
        return tmp_path / "adapter", load_from_disk(str(prepared)).to_list()

    return run_axolotl


def test_the_logged_loss_is_that_of_the_language_model_and_the_constraint(train: Train) -> None:
    adapter, samples = train(8, **FIRST_STEP, **IN_ORDER, micro_batch_size=4, gradient_accumulation_steps=2)
    first, second = losses(adapter, samples, batch_size=4)
    assert min(first.constraint, second.constraint) > 0.05
    # axolotl's Trainer counts micro-batches equally, not tokens, where the signature of the model's forward does not
    # name num_items_in_batch (core/trainers/base.py, line 130).
    assert logged_losses(adapter / "checkpoint-1") == [pytest.approx((first.loss + second.loss) / 2, rel=1e-5)]


def test_packed_samples_count_each_with_its_type(train: Train) -> None:
    adapter, samples = train(4, **FIRST_STEP, micro_batch_size=1, gradient_accumulation_steps=1, sample_packing=True)
    (expected,) = losses(adapter, samples, batch_size=4)
    assert expected.constraint > 0.05
    assert logged_losses(adapter / "checkpoint-1") == [pytest.approx(expected.loss, rel=1e-5)]


def test_the_example_trains_an_adapter_that_loads_without_axolotl(train: Train) -> None:
    adapter, samples = train(16)
    config = json.loads((adapter / "adapter_config.json").read_text())
    asked = {"peft_type": "LORAMOE", "lora_nums": 8, "r": 4, "lora_alpha": 32, "blc_alpha": 0.1, "blc_weight": 0.1}
    assert {name: config[name] for name in asked} == asked
    assert {sample["task_types"] for sample in samples} == {0, 1}
    experts = {name: weight for name, weight in load(adapter).named_parameters() if name.endswith(".B")}
    assert len(experts) == 12
    assert all(weight.abs().sum() > 0 for weight in experts.values())


def test_a_base_in_4_bits_is_trained(train: Train) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    adapter, _ = train(16, load_in_4bit=True, max_steps=2)
    assert "prepare_model_for_kbit_training" in (adapter / "debug.log").read_text()
    assert all(weight.abs().sum() > 0 for name, weight in load(adapter).named_parameters() if name.endswith(".B"))


def test_every_name_of_axolotls_configuration_arrives() -> None:
    cfg = DictDefault(
        adapter="loramoe",
        lora_r=2,
        lora_alpha=4,
        lora_dropout=0.25,
        lora_target_modules=["up_proj", "q_proj"],
        lora_exclude_modules=["q_proj"],
        lora_modules_to_save=["lm_head"],
        lora_rank_pattern={"up_proj": 3},
        lora_alpha_pattern={"up_proj": 5},
        peft_layers_to_transform=[0],
        peft_layers_pattern="layers",
        peft_use_rslora=True,
        lora_nums=3,
        blc_alpha=0.2,
        blc_weight=0.3,
        blc_target="match",
        expert_types=[0, 1, 2],
    )
    config = adapter_config(cfg)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (2, 4, 0.25, True)
    assert (config.target_modules, config.exclude_modules) == ({"up_proj", "q_proj"}, {"q_proj"})
    assert config.modules_to_save == ["lm_head"]
    assert (config.rank_pattern, config.alpha_pattern) == ({"up_proj": 3}, {"up_proj": 5})
    assert (config.layers_to_transform, config.layers_pattern) == ([0], "layers")
    assert (config.lora_nums, config.blc_alpha, config.blc_weight) == (3, 0.2, 0.3)
    assert (config.blc_target, config.expert_types) == ("match", [0, 1, 2])
    assert adapter_config(DictDefault(lora_target_linear=True)).target_modules == "all-linear"


@pytest.mark.parametrize("name", ["peft_use_dora", "lora_target_parameters", "peft_layer_replication"])
def test_what_loramoe_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"adapter: loramoe does not know {name}"):
        adapter_config(DictDefault({"adapter": "loramoe", name: True}))


@pytest.mark.parametrize("lost", [{"use_eaft": True}, {"context_parallel_size": 2}])
def test_what_would_lose_the_constraint_is_refused(lost: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the balancing constraint would be lost"):
        adapter_config(DictDefault({"adapter": "loramoe", **lost}))
    assert adapter_config(DictDefault({"adapter": "loramoe", "blc_weight": 0, **lost})).blc_weight == 0


def strategy(**entry: Any) -> typed_rows.TypedStrategy:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return typed_rows.load(tokenizer, DictDefault(sequence_len=256, train_on_inputs=False), DictDefault(entry))


def test_columns_of_rows_keep_their_types() -> None:
    """Axolotl hands the chat template many rows at once."""
    turns = [[{"role": "user", "content": "Where?"}, {"role": "assistant", "content": name}] for name in "AB"]
    rows = Dataset.from_dict({"messages": turns, "task_type": [1, 0]})
    typed = TokenizedPromptDataset(strategy(input_transform="chat_template"), rows)
    assert typed["task_types"][:] == [1, 0]
    assert typed["labels"][0] != typed["labels"][1]


def test_rows_without_a_type_are_refused() -> None:
    with pytest.raises(ValueError, match="the rows need 'task_type', one whole number each; got the columns"):
        strategy(input_transform="alpaca_chat.load_no_prompt").tokenize_prompt({"instruction": "Where?", "output": "A"})


def test_a_type_that_axolotl_has_no_strategy_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input_transform must name a strategy .* got 'mine'"):
        strategy(input_transform="mine")


def test_merging_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        LoraMoePlugin().register(DictDefault(adapter="loramoe", merge_lora=True))
    LoraMoePlugin().register(DictDefault(adapter="lora", merge_lora=True))
