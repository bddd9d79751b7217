"""What PEFT promises of a configuration: every task type, and files of other versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraMoeConfig, PeftConfig, TaskType, get_peft_config

from tests.helpers import edit

OPTIONS: dict[str, Any] = {"r": 2, "lora_nums": 3, "target_modules": ["up_proj"], "rank_pattern": {"up_proj": 1}}


@pytest.mark.parametrize("task_type", [*TaskType, None])
def test_task_types(task_type: TaskType | None) -> None:
    assert LoraMoeConfig(task_type=task_type).task_type == task_type


def test_a_dictionary_with_the_type_is_read_as_a_saved_one() -> None:
    fields = {"peft_type": "LORAMOE", "lora_nums": 5}
    expected = LoraMoeConfig(lora_nums=5, blc_target="paper", blc_importance="sum")
    assert get_peft_config(fields) == PeftConfig.from_peft_type(**fields) == expected
    assert get_peft_config(LoraMoeConfig(**OPTIONS).to_dict()) == LoraMoeConfig(**OPTIONS)


@pytest.mark.filterwarnings("ignore:The configuration file contains a `runtime_config` key")
@pytest.mark.parametrize("reader", [PeftConfig, LoraMoeConfig])
def test_unknown_fields_of_a_file_are_ignored(reader: Any, tmp_path: Path) -> None:
    LoraMoeConfig(**OPTIONS).save_pretrained(tmp_path / "inner")
    edit(tmp_path / "inner", from_the_future=1, runtime_config={"ephemeral_gpu_offload": True})
    with pytest.warns(UserWarning, match=r"\['from_the_future'\] for class LoraMoeConfig, these are ignored"):
        assert reader.from_pretrained(tmp_path, subfolder="inner") == LoraMoeConfig(**OPTIONS)
