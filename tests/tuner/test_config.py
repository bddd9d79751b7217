"""The configuration: defaults, values out of range, and its way through JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PeftConfig, get_peft_config

from loramoe import LoraMoeConfig
from tests.conftest import ORIGINAL

FILE = "adapter_config.json"


def test_defaults() -> None:
    config = LoraMoeConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.lora_nums) == (4, 32, 0.05, 8)
    assert (config.blc_weight, config.blc_alpha) == (0.1, 0.1)
    assert (config.blc_target, config.blc_importance) == ("match", "mean")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lora_nums": 5}, (1, 1, 0, 0, 0)),
        ({"lora_nums": 3, "expert_types": (2, 0, 1)}, (2, 0, 1)),
        ({"lora_nums": 1, "blc_weight": 0}, (0,)),
    ],
)
def test_types_of_experts(options: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert LoraMoeConfig(**options).types_of_experts == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be a whole number of at least 1; got 0"),
        ({"lora_nums": 2.5}, "lora_nums must be a whole number of at least 1; got 2.5"),
        ({"lora_nums": 1}, "lora_nums=1 with blc_weight=0.1. Set blc_weight=0, or lora_nums=2 or more"),
        ({"lora_alpha": "32"}, "lora_alpha='32'"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5"),
        ({"blc_alpha": -0.5}, "blc_alpha=-0.5"),
        ({"rank_pattern": {"up_proj": 0}}, r"rank_pattern\['up_proj'\] must be a whole number of at least 1; got 0"),
        ({"alpha_pattern": {"up_proj": None}}, r"alpha_pattern\['up_proj'\]=None"),
        ({"blc_weight": -0.1}, "blc_weight=-0.1"),
        ({"blc_alpha": 1.0}, "blc_alpha=1.0"),
        ({"blc_target": "less"}, r"\['match', 'paper'\]; got blc_target='less'"),
        ({"blc_importance": "max"}, r"\['mean', 'sum'\]; got blc_importance='max'"),
        ({"lora_nums": 3, "expert_types": [0, 1]}, r"lora_nums=3 experts; got 2 types: \[0, 1\]"),
        ({"lora_nums": 2, "expert_types": [0, -1]}, "got -1"),
        ({"target_modules": ".*mlp.*", "layers_to_transform": [0]}, r"the string '\.\*mlp\.\*'. Pass a list"),
        ({"layers_to_transform": "12"}, "layers_to_transform must be a whole number of at least 0; got '12'"),
        ({"layers_to_transform": [1, 2.5]}, "got 2.5"),
        ({"layers_pattern": "h"}, "layers_pattern='h' .* Set layers_to_transform too"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "got bias='all'"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraMoeConfig(**options)


def test_values_that_mean_the_default() -> None:
    assert LoraMoeConfig(layers_pattern=[], bias="none", rank_pattern=None) == LoraMoeConfig()


@pytest.mark.parametrize(
    "config",
    [
        LoraMoeConfig(blc_target="paper", blc_importance="sum"),
        LoraMoeConfig(
            r=np.int64(2),
            lora_alpha=np.int64(4),
            lora_dropout=np.float32(0.5),
            lora_nums=np.int32(3),
            expert_types=np.array([1, 0, 2]),
            target_modules=["up_proj"],
            layers_to_transform=np.array([0, 3]),
            rank_pattern={"up_proj": np.int64(1)},
            alpha_pattern={"up_proj": np.float32(0.5)},
        ),
        LoraMoeConfig(target_modules=["up_proj"], layers_to_transform=np.int64(1), layers_pattern=["h"]),
    ],
    ids=["original constraint", "numpy", "one layer"],
)
def test_save_and_load(config: LoraMoeConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["blc_target"] == config.blc_target
    assert LoraMoeConfig.from_pretrained(tmp_path) == PeftConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(("fields", "target"), [({}, "paper"), ({"blc_target": "match"}, "match")])
def test_a_file_without_the_newer_fields_keeps_what_held_then(
    fields: dict[str, str], target: str, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(json.dumps({"peft_type": "LORAMOE", "lora_nums": 4, **fields}))
    config = LoraMoeConfig.from_pretrained(tmp_path)
    assert (config.blc_target, config.blc_importance) == (target, "sum")


def test_a_dictionary_with_the_type_is_read_as_a_file() -> None:
    fields = {"peft_type": "LORAMOE", "lora_nums": 5}
    expected = LoraMoeConfig(lora_nums=5, blc_target="paper", blc_importance="sum")
    assert get_peft_config(fields) == PeftConfig.from_peft_type(**fields) == expected


@pytest.mark.parametrize("reader", [PeftConfig, LoraConfig, LoraMoeConfig])
def test_a_file_of_the_original_code(reader: Any) -> None:
    config = reader.from_pretrained(ORIGINAL)
    assert type(config) is LoraMoeConfig
    assert (config.lora_nums, config.blc_target, config.blc_importance) == (6, "paper", "sum")
