"""What is changed in peft, and that everything else about it stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import constants
from peft import AdaLoraConfig, LoraConfig, LoraMoeConfig, LoraMoeModel, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from peft.utils import save_and_load
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from loramoe.compat.peft import extend_peft_type, in_out_features
from loramoe.registration import register
from tests.conftest import ORIGINAL
from tests.helpers import later_transformers, run_python

REPOSITORY = Path(__file__).parents[2]


def test_registration_is_complete_and_idempotent() -> None:
    def state() -> list[Any]:
        extended = [LoraConfig.__new__, save_and_load.set_peft_model_state_dict, PreTrainedModel.load_adapter]
        return [*extended, list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)]

    before = state()
    register()
    assert state() == before
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORAMOE] is peft.LoraMoeConfig is LoraMoeConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORAMOE] is peft.LoraMoeModel is LoraMoeModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LORAMOE] == "loramoe_"
    assert json.dumps(PeftType.LORAMOE) == '"LORAMOE"'


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_type_is_a_member_on_every_python(version: str, tmp_path: Path) -> None:
    pyenv = map(str, sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")))
    python = next(pyenv, None) or shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    script = f"""
import copy, pickle, sys
from enum import Enum
from typing import Any

class PeftType(str, Enum):
    LORA = "LORA"
    IA3 = "IA3"

type.__setattr__(PeftType, "_hashable_values_", ["LORA", "IA3"])  # as later patch releases of 3.12 and 3.13 do
{inspect.getsource(extend_peft_type)}
extend_peft_type(PeftType)
extend_peft_type(PeftType)
assert PeftType._hashable_values_ == ["LORA", "IA3", "LORAMOE"]
member = PeftType("LORAMOE")
assert PeftType.LORAMOE is PeftType["LORAMOE"] is member, member
assert (member.name, member.value) == ("LORAMOE", "LORAMOE") and member == "LORAMOE" and hash(member) == hash("LORAMOE")
assert isinstance(member, PeftType) and member in PeftType
assert sys.version_info < (3, 12) or "LORAMOE" in PeftType
assert [*PeftType] == [PeftType.LORA, PeftType.IA3, member] and len(PeftType) == 3
assert [*PeftType.__members__] == ["LORA", "IA3", "LORAMOE"] and [*reversed(PeftType)][0] is member
assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
assert repr(member) == "<PeftType.LORAMOE: 'LORAMOE'>" and "LORAMOE" in dir(PeftType)
print("%d.%d" % sys.version_info[:2])
"""
    assert run_python(script, tmp_path, python=python).strip() == version


@pytest.mark.slow
def test_other_methods_are_as_without_loramoe(tmp_path: Path) -> None:
    """In a process of its own, as after `pip install`, before and after `import loramoe`."""
    (tmp_path / "loramoe").symlink_to(REPOSITORY / "loramoe")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "NEWER", "r": 3}')
    script = """
    import inspect, sys
    import peft

    def outcome(function, *args, **kwargs):
        try:
            return repr(function(*args, **kwargs))
        except Exception as error:
            return type(error).__name__, str(error)

    def facts():
        return [
            outcome(peft.PeftConfig.from_pretrained, "."),
            outcome(peft.PeftConfig.from_json_file, "adapter_config.json"),
            outcome(peft.LoraConfig.from_json_file, "adapter_config.json"),
            outcome(inspect.signature, peft.LoraConfig),
            outcome(peft.LoraConfig, "CAUSAL_LM", r=3, target_modules=["q"]),
            outcome(peft.LoraConfig, colour="blue"),
            outcome(peft.PeftType, "NEWER"),
        ]

    assert "loramoe" not in sys.modules
    before = facts()
    import loramoe
    assert peft.LoraMoeConfig
    assert facts() == before, (before, facts())
    print(before[0])
    """
    assert run_python(script, tmp_path, path=str(tmp_path)).strip() == "('KeyError', \"'NEWER'\")"


def test_lora_nums_makes_a_mixture() -> None:
    options = {"r": 2, "lora_alpha": 16, "lora_dropout": 0.1, "blc_alpha": 0.2, "blc_weight": 0.3, "lora_nums": 6}
    options |= {"target_modules": ["up_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"}
    made = LoraConfig(**options)
    assert type(made) is LoraMoeConfig
    assert made == LoraMoeConfig(**options)
    assert LoraConfig(lora_nums=8) == LoraMoeConfig()


def test_positional_arguments_and_options_at_their_defaults() -> None:
    names = [field.name for field in dataclasses.fields(LoraConfig) if field.init]
    plain = LoraConfig(task_type="CAUSAL_LM", peft_type=None)
    values = [getattr(plain, name) for name in names[: names.index("r")]]
    values[names.index("peft_type")] = None
    unused = {"bias": "none", "use_dora": False, "fan_in_fan_out": True, "enable_lora": None, "merge_weights": False}
    assert LoraConfig(*values, 3, lora_nums=2, **unused) == LoraMoeConfig(task_type="CAUSAL_LM", r=3, lora_nums=2)


@pytest.mark.parametrize(
    "foreign",
    [{"layer_replication": [[0, 1]]}, {"merge_weights": True}, {"lora_numbs": 3}],
)
def test_options_of_lora_alone_are_refused(foreign: dict[str, Any]) -> None:
    ((name, value),) = foreign.items()
    with pytest.raises(ValueError, match=r"LoraConfig\(lora_nums=4\).*lora_nums out for plain LoRA") as caught:
        LoraConfig(lora_nums=4, **foreign)
    assert f"{name}={value!r}" in str(caught.value)


def test_plain_lora_stays_plain_lora(tiny_llama: Any) -> None:
    plain = LoraConfig(r=3, target_modules=["up_proj"])
    for twin in (copy.copy(plain), copy.deepcopy(plain), pickle.loads(pickle.dumps(plain)), dataclasses.replace(plain)):
        assert type(twin) is LoraConfig
        assert twin == plain
    assert type(AdaLoraConfig(total_step=10)) is AdaLoraConfig
    with pytest.raises(TypeError, match="lora_nums"):
        AdaLoraConfig(total_step=10, lora_nums=3)
    adapted = get_peft_model(tiny_llama(), plain)
    assert type(adapted.base_model) is LoraModel
    assert not adapted.get_base_model()._forward_hooks


@later_transformers
@pytest.mark.parametrize("own_cache", [False, True])
def test_an_original_adapter_on_the_hub(own_cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a cache that holds the files, and no network; the cache may also be one that the call names."""
    adapter = tmp_path / "models--user--adapter"
    shutil.copytree(ORIGINAL, adapter / "snapshots" / ("a" * 40))
    (adapter / "refs").mkdir()
    (adapter / "refs" / "main").write_text("a" * 40)
    file = adapter / "snapshots" / ("a" * 40) / "adapter_config.json"
    base, ids = ORIGINAL.parents[1] / "base", torch.arange(3, 13).reshape(2, 5)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if own_cache:
        model = LlamaForCausalLM.from_pretrained("user/adapter", cache_dir=tmp_path).eval()
    else:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        model = LlamaForCausalLM.from_pretrained(base).eval()
        model.load_adapter("user/adapter")
    expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base).eval(), ORIGINAL)
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_features_of_linear_layers_of_every_kind() -> None:
    class Quantised(nn.Module):
        infeatures, outfeatures = 3, 5

    class Own(nn.Module):
        in_features, out_features = 3, 5

    assert [in_out_features(module) for module in (nn.Linear(3, 5), Quantised(), Own())] == [(3, 5)] * 3
    with pytest.raises(ValueError, match="got LayerNorm"):
        in_out_features(nn.LayerNorm(4))
