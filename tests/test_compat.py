"""What the extensions change in peft and transformers, and that everything else about them stays as it was."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, LoraMoeConfig, LoraMoeModel, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraModel
from peft.utils import save_and_load
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from loramoe import compat, config, model
from loramoe.legacy import LegacyTuner, TunerBase

REPOSITORY = Path(__file__).parent.parent


def run(python: str, script: str, *arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script outside the repository, its own folder not on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    command = [python, "-c", script, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


# --- registration -----------------------------------------------------------------------------------------------------


def test_registered() -> None:
    assert peft.LoraMoeConfig is config.LoraMoeConfig
    assert peft.LoraMoeModel is model.LoraMoeModel
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORAMOE] is LoraMoeConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORAMOE] is LoraMoeModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LORAMOE] == "loramoe_"


def test_registering_again_changes_nothing() -> None:
    def state() -> list[Any]:
        extended = [LoraConfig.__new__, save_and_load.load_peft_weights, PreTrainedModel.load_adapter]
        return [*extended, list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING), LabelSmoother.__call__]

    before = state()
    compat.register()
    compat.extend_label_smoother(LabelSmoother)
    assert state() == before


def test_the_type_is_a_member_like_any_other() -> None:
    member = PeftType.LORAMOE
    assert (member.name, member.value, str.__str__(member)) == ("LORAMOE", "LORAMOE", "LORAMOE")
    assert isinstance(member, PeftType)
    assert PeftType("LORAMOE") is PeftType["LORAMOE"] is member
    assert list(PeftType)[-1] is member
    assert list(PeftType.__members__)[-1] == "LORAMOE"
    assert len(PeftType) == len(list(PeftType)) == len(set(PeftType))
    assert member in PeftType
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert repr(member) == repr(PeftType.LORA).replace("LORA", "LORAMOE")
    assert json.dumps(member) == '"LORAMOE"'


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_type_on_every_python(version: str, tmp_path: Path) -> None:
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

{inspect.getsource(compat.extend_peft_type)}
extend_peft_type(PeftType)
extend_peft_type(PeftType)
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
    ran = run(python, script, cwd=tmp_path)
    assert ran.stdout.strip() == version, ran.stderr


def test_the_type_where_an_enum_lists_its_hashable_values() -> None:
    class Later(str, Enum):
        LORA = "LORA"

    type.__setattr__(Later, "_hashable_values_", ["LORA"])  # as later patch releases of Python 3.12 and 3.13 do
    compat.extend_peft_type(Later)
    assert vars(Later)["_hashable_values_"] == ["LORA", "LORAMOE"]


@pytest.mark.slow
def test_plain_peft_refuses_our_adapter_loudly(adapted: Any, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    script = "import sys, peft; assert 'loramoe' not in sys.modules; peft.PeftConfig.from_pretrained(sys.argv[1])"
    ran = run(sys.executable, script, str(tmp_path), cwd=tmp_path)
    assert ran.returncode == 1
    assert "KeyError: 'LORAMOE'" in ran.stderr


# --- LoraConfig(lora_nums=…) ------------------------------------------------------------------------------------------


def test_lora_nums_makes_the_mixture() -> None:
    options = {"r": 2, "lora_alpha": 16, "lora_dropout": 0.1, "blc_alpha": 0.2, "blc_weight": 0.3, "lora_nums": 6}
    options |= {"target_modules": ["up_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"}
    made = LoraConfig(**options)
    assert type(made) is LoraMoeConfig
    assert made == LoraMoeConfig(**options)
    assert LoraConfig(lora_nums=8) == LoraMoeConfig()


def test_positional_arguments_keep_their_meaning() -> None:
    names = [f.name for f in dataclasses.fields(LoraConfig) if f.init]
    position = names.index("r")
    plain = LoraConfig(task_type="CAUSAL_LM")
    values = [getattr(plain, name) for name in names[:position]]
    made = LoraConfig(*values, 3, lora_nums=2)
    assert made == LoraMoeConfig(task_type="CAUSAL_LM", r=3, lora_nums=2)


def test_options_at_lora_s_own_values_may_be_named() -> None:
    made = LoraConfig(
        lora_nums=2, bias="none", use_dora=False, fan_in_fan_out=True, enable_lora=None, merge_weights=False
    )
    assert made == LoraMoeConfig(lora_nums=2)


@pytest.mark.parametrize(
    "foreign",
    [{"use_dora": True}, {"bias": "all"}, {"layer_replication": [[0, 1]]}, {"merge_weights": True}, {"lora_numbs": 3}],
)
def test_options_of_lora_alone_are_refused(foreign: dict[str, Any]) -> None:
    (name, value), *_ = foreign.items()
    with pytest.raises(ValueError, match=r"LoraConfig\(lora_nums=4\) makes a mixture") as caught:
        LoraConfig(lora_nums=4, **foreign)
    assert f"does not know {name}={value!r}. Leave it out, or leave lora_nums out for plain LoRA." in str(caught.value)


def test_plain_lora_config_is_untouched(tmp_path: Path) -> None:
    plain = LoraConfig(r=3, target_modules=["q_proj"])
    assert type(plain) is LoraConfig
    assert plain.peft_type is PeftType.LORA
    assert repr(plain).startswith("LoraConfig(")
    assert not [name for name in plain.to_dict() if name in ("lora_nums", "blc_alpha", "blc_weight", "expert_types")]
    for twin in (copy.copy(plain), copy.deepcopy(plain), pickle.loads(pickle.dumps(plain)), dataclasses.replace(plain)):
        assert type(twin) is LoraConfig
        assert twin == plain
    plain.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    assert type(read) is LoraConfig
    assert read.to_dict() == plain.to_dict()


def test_the_signature_still_shows_the_fields() -> None:
    shown = list(inspect.signature(LoraConfig).parameters)
    assert shown == [field.name for field in dataclasses.fields(LoraConfig) if field.init]


def test_subclasses_stay_subclasses() -> None:
    adaptive = AdaLoraConfig(total_step=10)
    assert isinstance(adaptive, LoraConfig)
    assert type(adaptive) is AdaLoraConfig
    with pytest.raises(TypeError, match="lora_nums"):
        AdaLoraConfig(total_step=10, lora_nums=3)


def test_plain_lora_still_trains_as_plain_lora(tiny_llama: Any) -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(target_modules=["up_proj"]))
    assert type(adapted.base_model) is LoraModel
    assert not adapted.get_base_model()._forward_hooks


@pytest.mark.parametrize(
    "made",
    [
        LoraMoeConfig(),
        LoraMoeConfig(lora_nums=3, expert_types=[2, 1, 0], blc_target="match", blc_alpha=0.5, use_rslora=True),
        LoraMoeConfig(target_modules=["up_proj", "q_proj"], layers_to_transform=[0, 3], layers_pattern="layers"),
        LoraMoeConfig(target_modules="all-linear", exclude_modules=["lm_head"], rank_pattern={"q_proj": 2}),
        LoraMoeConfig(alpha_pattern={"q_proj": 1.5}, modules_to_save=["lm_head"], inference_mode=True),
    ],
)
def test_configurations_survive_json(made: LoraMoeConfig, tmp_path: Path) -> None:
    made.save_pretrained(tmp_path)
    for reader in (PeftConfig, LoraMoeConfig):
        read = reader.from_pretrained(tmp_path)
        assert type(read) is LoraMoeConfig
        assert read == made
    assert copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made


# --- the smaller extensions -------------------------------------------------------------------------------------------


def test_declare_task_types() -> None:
    class Model:
        def forward(self, ids: int, labels: int = 0) -> None: ...

    class Open:
        def forward(self, ids: int, **kwargs: Any) -> None: ...

    for kind, wanted in (
        (Model, ["self", "ids", "labels", "task_types"]),
        (Open, ["self", "ids", "task_types", "kwargs"]),
    ):
        compat.declare_task_types(kind)
        compat.declare_task_types(kind)
        assert list(inspect.signature(kind.forward).parameters) == wanted
        assert inspect.signature(kind.forward).parameters["task_types"].default is None


def test_the_llama_declares_task_types_through_its_door() -> None:
    assert "task_types" in inspect.signature(LlamaForCausalLM.forward).parameters


def test_label_smoothing_without_the_constraint_is_as_before() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    smoother, plain = LabelSmoother(epsilon=0.1), LabelSmoother.__call__.__wrapped__
    outputs = CausalLMOutput(logits=logits)
    assert torch.equal(smoother(outputs, labels), plain(smoother, outputs, labels))
    outputs |= {"balance_loss": torch.tensor(0.5), "skips_first_label": True}
    assert torch.equal(smoother(outputs, labels), plain(smoother, CausalLMOutput(logits=logits), labels) + 0.5)
    assert torch.equal(smoother((logits,), labels), plain(smoother, (logits,), labels))


@pytest.mark.parametrize(
    "module", [nn.Embedding(3, 4), nn.Conv1d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.MultiheadAttention(4, 2)]
)
def test_no_linear_has_no_features(module: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"LoRAMoE adapts linear layers; got {type(module).__name__}. Leave it out of"):
        compat.in_out_features(module)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft's own
def test_features_of_what_says_them() -> None:
    class Quantised(nn.Module):
        infeatures, outfeatures = 3, 5

    class Own(nn.Module):
        in_features, out_features = 3, 5

    assert [compat.in_out_features(m) for m in (nn.Linear(3, 5), Quantised(), Own())] == [(3, 5)] * 3
    with pytest.raises(ValueError, match="got LayerNorm"):
        compat.in_out_features(nn.LayerNorm(4))


def test_older_peft_gets_the_tuner_it_lacks() -> None:
    assert issubclass(LoraMoeModel, TunerBase)
    lacking = not hasattr(peft.tuners.tuners_utils.BaseTuner, "delete_adapter")
    assert issubclass(LoraMoeModel, LegacyTuner) is lacking
