"""The configuration: defaults, what it refuses, and its way through JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from loramoe import LoraMoeConfig


def test_defaults_are_the_papers_with_the_constraint_on() -> None:
    config = LoraMoeConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, 0.05)
    assert (config.blc_weight, config.blc_alpha, config.blc_target) == (0.1, 0.1, "paper")
    assert config.peft_type.value == "LORAMOE"


@pytest.mark.parametrize(("lora_nums", "expected"), [(2, (1, 0)), (5, (1, 1, 0, 0, 0)), (8, (1, 1, 1, 1, 0, 0, 0, 0))])
def test_the_first_half_of_the_experts_has_type_one(lora_nums: int, expected: tuple[int, ...]) -> None:
    assert LoraMoeConfig(lora_nums=lora_nums).types_of_experts == expected


def test_expert_types_override_the_default() -> None:
    assert LoraMoeConfig(lora_nums=3, expert_types=(2, 0, 1)).types_of_experts == (2, 0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r must be a whole number of at least 1; got r=0"),
        ({"lora_nums": 2.5}, "lora_nums must be a whole number of at least 1; got lora_nums=2.5"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be a probability in \[0, 1\); got lora_dropout=1.0"),
        ({"rank_pattern": {"up_proj": 0}}, "rank_pattern must map to ranks of at least 1; got {'up_proj': 0}"),
        ({"blc_weight": -0.1}, "blc_weight must not be negative; got blc_weight=-0.1. Set 0"),
        (
            {"lora_nums": 1},
            "lora_nums must be at least 2 for a balancing constraint; got lora_nums=1 with blc_weight=0.1. "
            "Set blc_weight=0, or lora_nums=2 or more.",
        ),
        ({"blc_alpha": 1.0}, r"blc_alpha must be in \[0, 1\).*; got blc_alpha=1.0"),
        ({"blc_target": "less"}, r"blc_target must be one of \['paper', 'match'\]; got blc_target='less'"),
        ({"lora_nums": 3, "expert_types": [0, 1]}, r"each of the lora_nums=3 experts; got 2 types: \[0, 1\]"),
        ({"lora_nums": 2, "expert_types": [0, -1]}, r"expert_types must be whole numbers of at least 0; got \[0, -1\]"),
        (
            {"target_modules": ".*mlp.*", "layers_to_transform": [0]},
            r"layers_to_transform works with a list of target_modules, .* target_modules='\.\*mlp\.\*'. Pass a list",
        ),
        ({"layers_pattern": "h"}, "layers_pattern='h' says where .* Set layers_to_transform too"),
        ({"r": True}, "r must be a whole number of at least 1; got r=True"),
        ({"r": "4"}, "r must be a whole number of at least 1; got r='4'"),
        ({"r": 10**9}, r"r × lora_nums must be at most 65,536; got r=1000000000 and lora_nums=8. Set lower ones"),
        ({"rank_pattern": {"up_proj": 10**6}}, "r × lora_nums must be at most 65,536; got r=1000000 and lora_nums=8"),
        ({"rank_pattern": {"up_proj": "2"}}, "rank_pattern must be names mapped to whole numbers"),
        ({"rank_pattern": ["up_proj"]}, "rank_pattern must be names mapped to whole numbers"),
        ({"alpha_pattern": {"up_proj": None}}, "alpha_pattern must be names mapped to finite numbers"),
        ({"lora_alpha": "32"}, "lora_alpha must be a finite number; got lora_alpha='32'"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a finite number; got lora_alpha=nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number; got lora_alpha=1000"),
        ({"blc_weight": math.inf}, "blc_weight must be a finite number; got blc_weight=inf"),
        ({"use_rslora": 1}, "use_rslora must be true or false; got use_rslora=1"),
        ({"target_modules": {"up_proj": 1}}, "target_modules must be text, or a list of texts"),
        ({"target_modules": "("}, r"'\(' should be a regular expression, and is none .* Repair it in target_modules"),
        ({"rank_pattern": {"(": 2}}, "should be a regular expression, and is none"),
        ({"layers_to_transform": [0], "layers_pattern": ["h", "["]}, r"should be a regular expression, and is none"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of texts; got modules_to_save='lm_head'"),
        ({"modules_to_save": ["("]}, "should be a regular expression, and is none .* or modules_to_save"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform must be a whole number, or a list of them"),
        ({"expert_types": 1}, "expert_types must be a list of whole numbers; got expert_types=1"),
        ({"lora_nums": 2, "expert_types": [0, 2**63]}, "expert_types must be whole numbers of at least 0; got"),
        ({"base_model_name_or_path": 1}, "base_model_name_or_path must be text; got base_model_name_or_path=1"),
        ({"init_lora_weights": "pissa"}, "LoRAMoE knows no other start. Got init_lora_weights='pissa'"),
    ],
)
def test_bad_values_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraMoeConfig(**settings)


def test_one_expert_without_constraint_is_fine() -> None:
    assert LoraMoeConfig(lora_nums=1, blc_weight=0).types_of_experts == (0,)


def test_round_trip_through_json(tmp_path: Path) -> None:
    config = LoraMoeConfig(
        r=2, lora_nums=3, expert_types=[1, 0, 2], blc_target="match", target_modules=["up_proj"], rank_pattern={"up": 1}
    )
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORAMOE"
