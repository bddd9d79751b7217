"""What PEFT asks of every configuration: it survives files, copies and newer versions, and refuses what is none."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, TaskType
from peft.utils.peft_types import PeftType

from loramoe import LoraMoeConfig
from loramoe.adapter_files import CheckpointError
from tests.helpers import edit

FIELDS: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 7.5,
    "lora_dropout": 0.0,
    "lora_nums": 3,
    "blc_alpha": 0.2,
    "blc_weight": 0.3,
    "expert_types": [2, 0, 1],
    "blc_target": "match",
    "target_modules": ["up_proj", "down_proj"],
    "exclude_modules": ["lm_head"],
    "use_rslora": True,
    "init_lora_weights": False,
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [0],
    "layers_pattern": ["layers"],
    "rank_pattern": {"up_proj": 1},
    "alpha_pattern": {"up_proj": 3},
    "task_type": "CAUSAL_LM",
    "revision": "v1",
    "base_model_name_or_path": "somewhere",
}


@pytest.mark.parametrize("task_type", [*TaskType, None])
def test_every_task_type_is_taken(task_type: TaskType | None) -> None:
    assert LoraMoeConfig(task_type=task_type).task_type == task_type


def test_an_unknown_task_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Invalid task type: 'poetry'. Must be one of the following task types: SEQ"):
        LoraMoeConfig(task_type="poetry")


def test_made_by_its_type() -> None:
    made = PeftConfig.from_peft_type(peft_type=PeftType("LORAMOE"), lora_nums=5)
    assert made == LoraMoeConfig(lora_nums=5)


def test_the_type_is_its_own_whatever_is_passed() -> None:
    assert LoraMoeConfig(peft_type="LORA").peft_type == "LORAMOE"


@pytest.mark.parametrize("fields", [{}, FIELDS], ids=["defaults", "every field"])
@pytest.mark.parametrize("reader", [PeftConfig, LoraMoeConfig])
def test_saved_and_read_again(fields: dict[str, Any], reader: Any, tmp_path: Path) -> None:
    made = LoraMoeConfig(**fields)
    made.save_pretrained(tmp_path)
    read = reader.from_pretrained(tmp_path)
    assert type(read) is LoraMoeConfig
    assert read.to_dict() == made.to_dict()
    assert isinstance(read.target_modules, set) == isinstance(made.target_modules, set)


def test_read_from_a_subfolder(tmp_path: Path) -> None:
    made = LoraMoeConfig(**FIELDS)
    made.save_pretrained(tmp_path / "inner")
    assert PeftConfig.from_pretrained(tmp_path, subfolder="inner") == made


def test_the_file_is_the_dictionary(tmp_path: Path) -> None:
    made = LoraMoeConfig(**FIELDS)
    made.save_pretrained(tmp_path)
    read = LoraMoeConfig.from_json_file(str(tmp_path / "adapter_config.json"))
    sets = {name: set(read[name]) for name in ("target_modules", "exclude_modules")}  # JSON has lists alone
    assert read | sets == made.to_dict()


@pytest.mark.filterwarnings("ignore:The configuration file contains a `runtime_config` key")
def test_settings_of_a_run_are_never_read(tmp_path: Path) -> None:
    LoraMoeConfig().save_pretrained(tmp_path)
    edit(tmp_path, runtime_config={"ephemeral_gpu_offload": True})
    assert "runtime_config" not in LoraMoeConfig.from_json_file(str(tmp_path / "adapter_config.json"))
    assert PeftConfig.from_pretrained(tmp_path) == LoraMoeConfig()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies(copied: Any) -> None:
    made = LoraMoeConfig(**FIELDS)
    assert copied(made) == made


@pytest.mark.parametrize("reader", [PeftConfig, LoraMoeConfig])
def test_fields_of_a_newer_version_are_told_and_left_out(reader: Any, tmp_path: Path) -> None:
    made = LoraMoeConfig(**FIELDS)
    made.save_pretrained(tmp_path)
    edit(tmp_path, from_the_future=1, another=[2])
    told = r"Unexpected keyword arguments \['another', 'from_the_future'\] for class LoraMoeConfig, these are ignored"
    with pytest.warns(UserWarning, match=told):
        assert reader.from_pretrained(tmp_path) == made


def test_any_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"colour": "blue"}))
    with pytest.raises(TypeError, match=r"LoraMoeConfig config .* is missing required keys: {'peft_type'}"):
        LoraMoeConfig.from_pretrained(tmp_path)
    with pytest.raises((CheckpointError, TypeError), match=r"is missing required keys|peft_type=None is none that"):
        PeftConfig.from_pretrained(tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json' at "):
        PeftConfig.from_pretrained(str(tmp_path / "nothing"), local_files_only=True)


def test_a_field_is_a_default_for_a_file_that_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORAMOE", "lora_nums": 5}))
    assert PeftConfig.from_pretrained(tmp_path) == LoraMoeConfig(lora_nums=5)
    assert LoraMoeConfig.from_pretrained(tmp_path, inference_mode=True).inference_mode is False  # no override: PEFT's


@pytest.mark.parametrize("version", ["0.17.0", "1"])
def test_the_version_of_peft_that_saved_it_is_kept(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import config

    if "peft_version" not in LoraMoeConfig.__dataclass_fields__:
        pytest.skip("peft stores its version since 0.18")
    monkeypatch.setattr(config, "__version__", version)
    LoraMoeConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(config, "__version__", "0.1")
    assert PeftConfig.from_pretrained(tmp_path).peft_version == version


@pytest.mark.parametrize(
    "foreign",
    [
        {"layer_replication": [(0, 2)]},
        {"target_parameters": ["experts.gate_up_proj"]},
        {"trainable_token_indices": [1]},
        {"ensure_weight_tying": True},
        {"use_dora": True},
        {"bias": "all"},
        {"megatron_config": {}},
    ],
    ids=lambda foreign: next(iter(foreign)),
)
def test_options_of_lora_alone_are_no_fields(foreign: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(foreign))}'"):
        LoraMoeConfig(**foreign)
