"""Broken configurations of adapters are told by file and fault; those of other methods are read as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from loramoe.adapter_files import CONFIG, PICKLED, SAFE, CheckpointError
from loramoe.compat_files import is_loramoe_folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"adapter_config.json: peft_type=None is none that the installed peft knows \(.*LORAMOE"),
        ('{"peft_type": null}', "peft_type=None is none"),
        ('{"peft_type": "NO"}', "peft_type='NO' is none that the installed peft knows .* Update peft, or correct"),
        ('{"peft_type": "LORAMOE", "self": 1}', "an adapter has no field 'self'. Remove it"),
        ("{", "adapter_config.json is not JSON"),
    ],
)
def test_a_broken_configuration(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        PeftConfig.from_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(nn.Linear(2, 2), str(tmp_path))


def test_a_configuration_of_one_method_needs_no_type(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"r": 3}')
    assert LoraConfig.from_pretrained(str(tmp_path)).r == 3


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        ('{"peft_type": "LORAMOE"}', True),
        ('{"peft_type": "LORA", "lora_nums": 8}', True),
        ('{"peft_type": "LORA"}', False),
        ('{"peft_type": "IA3"}', False),
    ],
)
def test_which_folders_are_ours(content: str, ours: bool, tmp_path: Path) -> None:
    assert not is_loramoe_folder(tmp_path)
    assert not is_loramoe_folder("some-one/some-model")
    (tmp_path / CONFIG).write_text(content)
    assert is_loramoe_folder(tmp_path) is ours


def test_an_adapter_without_weights(saved: Path, tiny_llama) -> None:
    (saved / SAFE).unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: neither adapter_model.safetensors nor"):
        PeftModel.from_pretrained(tiny_llama(), saved)
    with pytest.raises(CheckpointError, match="holds no weights"):
        tiny_llama().load_adapter(str(saved))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_of_another_method_is_read_as_ever(tmp_path: Path) -> None:
    def lora() -> PeftModel:
        return get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))

    lora().save_pretrained(tmp_path, safe_serialization=False)
    PeftModel.from_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    assert set_peft_model_state_dict(lora(), {}).missing_keys  # peft's own way: not ours to judge
    (tmp_path / PICKLED).write_bytes(b"garbage")
    with pytest.raises(Exception, match="Weights only load failed") as caught:
        PeftModel.from_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    assert not isinstance(caught.value, CheckpointError)


def test_weights_in_memory_that_have_no_place(adapted) -> None:
    model = adapted()
    with pytest.raises(CheckpointError, match="holds no weights for"):
        set_peft_model_state_dict(model, {"x": torch.ones(1)})
