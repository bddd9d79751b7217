"""axolotl trains `adapter: loramoe` with our plug-in: the constraint is in its loss, the adapter loads without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("axolotl", reason="needs axolotl: bash scripts/ecosystem/axolotl.sh")

from axolotl.utils.dict import DictDefault
from datasets import load_from_disk
from transformers import AutoTokenizer

from loramoe.integrations.axolotl import LoraMoePlugin, adapter_config, load
from tests.ecosystem.reference import BASE, ROOT, assert_trained, first_samples, logged_losses, losses, run

FIRST_STEP = {"max_steps": 1, "learning_rate": 0, "lora_dropout": 0, "blc_alpha": 0.5, "blc_weight": 0.5}
IN_ORDER = {"shuffle_merged_datasets": False, "curriculum_sampling": True}
Train = Callable[..., tuple[Path, list[dict[str, Any]]]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Runs axolotl on the first samples of the tiny data; gives the adapter and the tokenised samples."""

    def run_axolotl(count: int, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
        first_samples(tmp_path / "samples.json", count)
        config = yaml.safe_load((ROOT / "examples/integrations/axolotl.yaml").read_text())
        config["datasets"][0]["path"] = str(tmp_path / "samples.json")
        config |= {"dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "adapter")}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | changes))
        run("axolotl", "train", str(tmp_path / "config.yaml"), "--launcher", "python")
        (prepared,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
        return tmp_path / "adapter", load_from_disk(str(prepared)).to_list()

    return run_axolotl


def test_the_constraint_is_in_the_loss(train: Train) -> None:
    adapter, samples = train(8, **FIRST_STEP, **IN_ORDER, micro_batch_size=4, gradient_accumulation_steps=2)
    first, second = losses(adapter, samples, batch_size=4)
    # axolotl counts micro-batches equally if the model's forward does not name num_items_in_batch.
    assert logged_losses(adapter / "checkpoint-1") == [pytest.approx((first.loss + second.loss) / 2, rel=1e-5)]


def test_packed_samples_have_their_own_types(train: Train) -> None:
    adapter, samples = train(4, **FIRST_STEP, micro_batch_size=1, gradient_accumulation_steps=1, sample_packing=True)
    (expected,) = losses(adapter, samples, batch_size=4)
    assert logged_losses(adapter / "checkpoint-1") == [pytest.approx(expected.loss, rel=1e-5)]


@pytest.mark.parametrize("changes", [{}, {"load_in_4bit": True, "max_steps": 2}])
def test_the_example_trains_an_adapter_that_loads_without_axolotl(train: Train, changes: dict[str, Any]) -> None:
    assert_trained(train(16, **changes)[0])


def test_every_flag_reaches_the_adapter() -> None:
    same = {"lora_alpha": 4, "lora_dropout": 0.25, "lora_nums": 3, "blc_alpha": 0.2, "blc_weight": 0.3}
    same |= {"blc_target": "paper", "blc_importance": "sum", "expert_types": [0, 1, 2]}
    lora = {"r": 2, "target_modules": {"up_proj"}, "exclude_modules": {"q_proj"}, "modules_to_save": ["lm_head"]}
    lora |= {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 5}}
    peft = {"layers_to_transform": [0], "layers_pattern": "layers", "use_rslora": True, "init_lora_weights": False}
    flags = same | {f"lora_{name}": value for name, value in lora.items()}
    flags |= {f"peft_{name}": value for name, value in peft.items()}
    config = vars(adapter_config(DictDefault(adapter="loramoe", **flags)))
    assert config | same | lora | peft == config
    assert adapter_config(DictDefault(lora_target_linear=True)).target_modules == "all-linear"


@pytest.mark.parametrize(
    ("flag", "value"),
    [("peft_use_dora", True), ("peft_autocast_adapter_dtype", False), ("peft_init_lora_weights", "false")],
)
def test_what_loramoe_does_not_have_is_refused(flag: str, value: Any) -> None:
    with pytest.raises(ValueError, match=flag.removeprefix("peft_")):
        adapter_config(DictDefault({"adapter": "loramoe", flag: value}))
    assert adapter_config(DictDefault({"adapter": "loramoe", "peft_use_dora": False})).init_lora_weights


@pytest.mark.parametrize("lost", [{"use_eaft": True}, {"context_parallel_size": 2}])
def test_what_would_leave_the_constraint_out_is_refused(lost: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(lost))):
        adapter_config(DictDefault({"adapter": "loramoe", **lost}))
    assert adapter_config(DictDefault({"adapter": "loramoe", "blc_weight": 0, **lost})).blc_weight == 0


def test_samples_without_a_type_and_merging_are_refused() -> None:
    cfg, tokenizer = DictDefault(sequence_len=256, train_on_inputs=False), AutoTokenizer.from_pretrained(BASE)
    strategy = load(tokenizer, cfg, DictDefault(input_transform="alpaca_chat.load_no_prompt"))
    with pytest.raises(ValueError, match="'task_type'"):
        strategy.tokenize_prompt({"instruction": "a", "output": "b"})
    with pytest.raises(ValueError, match="'mine'"):
        load(tokenizer, cfg, DictDefault(input_transform="mine"))
    with pytest.raises(NotImplementedError):
        LoraMoePlugin().register(DictDefault(adapter="loramoe", merge_lora=True))
