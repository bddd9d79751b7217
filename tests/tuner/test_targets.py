"""Which layers are adapted: defaults of the architectures, routers, fused experts, and the names of a user."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from loramoe.tuner.targets import (
    _MODEL_TYPES,
    ModelView,
    default_targets,
    expand_all_linear,
    validate_targets,
)
from tests.helpers import later_transformers

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
SIZE |= {"intermediate_size": 48, "num_local_experts": 4, "num_experts": 4, "pad_token_id": 0}
SIZE |= {"enable_moe_block": True, "moe_intermediate_size": 16, "top_k_experts": 2, "first_k_dense_replace": 1}
# Some configurations have no default for a size; one activation cannot be made without weights.
OWN_SIZES: dict[str, dict[str, Any]] = {
    "apertus": {"hidden_act": "silu"},
    "hunyuan_v1_dense": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 48},
}
NEVER_CALLED = "NonDynamicallyQuantizableLinear"  # of nn.MultiheadAttention
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def gated(*parents: str) -> list[str]:
    return [f"{parent}.{layer}" for parent in parents for layer in ("gate_proj", "up_proj", "down_proj")]


MLP = "model.layers.*.mlp.experts"
# By architecture: the fused experts, the default.
FUSED: dict[str, tuple[str, list[str]]] = {
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss", "olmoe"), (MLP, ATTENTION)),
    "qwen2_moe": (MLP, gated("shared_expert")),
    "deepseek_v3": (MLP, gated("mlp", "shared_experts")),
    "granitemoe": ("model.layers.*.block_sparse_moe.experts", ATTENTION),
    "llama4_text": ("model.layers.*.feed_forward.experts", gated("shared_expert")),
    "jamba": ("model.layers.*.feed_forward.experts", gated("feed_forward")),
    "jetmoe": ("model.layers.*.mlp.input_linear", ["kv_proj"]),
    "zaya": (MLP, ["o_proj", "q_proj", "k_proj", "v_proj_current", "v_proj_delayed"]),
    "longcat_flash": (MLP, gated("mlps.0", "mlps.1")),
    "gemma4_text": ("model.layers.*.experts", gated("mlp")),
}


def on_meta(model_type: str, **sizes: Any) -> nn.Module:
    """A model without memory; not a causal one where there is none."""
    config, factory = AutoConfig.for_model(model_type, **sizes, **OWN_SIZES.get(model_type, {})), AutoModelForCausalLM
    with torch.device("meta"):
        return (factory if type(config) in factory._model_mapping else AutoModel).from_config(config)


def fused(model_type: str) -> nn.Module:
    if model_type not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this transformers has no {model_type}")
    model = on_meta(model_type, **SIZE)
    if Version(transformers.__version__) < Version("5"):
        pytest.skip("each expert has linear layers of its own")
    return model


def settings(**fields: Any) -> Any:
    return SimpleNamespace(**dict.fromkeys(("exclude_modules", "layers_pattern", "task_type")) | fields)


def selected(model: nn.Module, targets: Any) -> dict[str, nn.Module]:
    """Modules that PEFT would adapt."""
    config = settings(target_modules=targets)
    return {name: module for name, module in model.named_modules() if check_target_module_exists(config, name)}


def all_linear_of_peft(model: nn.Module) -> set[str]:
    return set(_maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear"), model).target_modules)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D)) and not type(module).__name__.endswith("Router")


@later_transformers  # before, each expert has linear layers of its own
@pytest.mark.parametrize("model_type", FUSED)
def test_default_beside_fused_experts(model_type: str) -> None:
    model, (experts, wanted) = fused(model_type), FUSED[model_type]
    with pytest.warns(UserWarning, match="stay frozen") as caught:
        targets = default_targets(model, model_type)
    adapted = selected(model, targets)
    assert adapted == selected(model, set(wanted)) != {}
    assert all(is_linear(module) for module in adapted.values())
    notice = rf"The experts in {re.escape(experts)}.* stay frozen. LoRAMoE adapts {len(adapted)} other layers: .*"
    assert [bool(re.fullmatch(notice, str(warning.message))) for warning in caught] == [True]  # in one line
    routers = ModelView(model).routers
    assert routers
    assert expand_all_linear(model) == all_linear_of_peft(model) - routers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (targets, "all-linear"):  # raises if a name is not a linear layer's
            validate_targets(model, settings(target_modules=each))


@pytest.mark.parametrize("names", _MODEL_TYPES, ids=str)
def test_default_of_known_architectures(names: Any) -> None:
    for model_type in {*_MODEL_TYPES[names].split()} & {*CONFIG_MAPPING_NAMES}:
        check_default(model_type, names)


def check_default(model_type: str, known: Any) -> None:
    layers = {} if model_type in ("gemma3", "gpt_neo", "qwen3_5") else {"num_hidden_layers": 2}
    model = on_meta(model_type, **layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        targets = default_targets(model, model_type)
        validate_targets(model, settings(target_modules=targets))
    adapted = selected(model, targets)
    assert targets <= set(known) if isinstance(known, tuple) else adapted == selected(model, known)
    assert all(is_linear(module) for module in adapted.values())
    assert not [name for name in adapted if re.search("attn|attention|vision|pooler|cls", name)]
    names = expand_all_linear(model)
    assert set(adapted) <= names
    assert {type(model.get_submodule(name)).__name__ for name in all_linear_of_peft(model) ^ names} <= {NEVER_CALLED}


def test_a_gate_beside_experts_is_a_router() -> None:
    mlp = nn.ModuleDict({"gate": nn.Linear(4, 2), "experts": nn.ModuleList([nn.Linear(4, 4)])})
    assert ModelView(nn.ModuleDict({"mlp": mlp, "other": nn.ModuleDict({"gate": nn.Linear(4, 4)})})).routers == {
        "mlp.gate"
    }


def test_all_linear_leaves_the_classifier_out() -> None:
    with torch.device("meta"):
        model = LlamaForSequenceClassification(LlamaConfig(**SIZE))
    assert "score" in expand_all_linear(model)
    assert "score" not in expand_all_linear(model, "SEQ_CLS")


def test_an_unknown_architecture_gets_an_example_of_its_own_names() -> None:
    model = nn.ModuleDict({"attn": nn.Linear(4, 4), "enc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match=r"not known for model_type='abacus'. Name them .* target_modules=\['enc'\].$"):
        default_targets(model, "abacus")
    with pytest.raises(ValueError, match=r"not known for model_type=None. .* target_modules=\['0'\].$"):
        default_targets(nn.Sequential(nn.Linear(4, 4)), None)


class Mixed(nn.Module):
    """Two numbered layers, and modules that are not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up_proj": nn.Linear(4, 4)}) for _ in "01")
        self.emb = nn.Embedding(4, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.lm_head = nn.Linear(4, 4)


UP = {"up_proj"}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": None},
        {"target_modules": UP | {"layers.1.up_proj"}},
        {"target_modules": ["lm_head"]},
        {"target_modules": r".*\.up_.*"},
        {"target_modules": "all-linear", "rank_pattern": {"up_proj": 2}},
        {"target_modules": "dummy-target-modules"},
        {"target_modules": {"up_proj", "emb"}, "exclude_modules": ["emb"]},
        {"target_modules": {"up_proj", "lm_head"}, "modules_to_save": ["head"]},
        {"target_modules": UP, "modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"},
        {"target_modules": UP, "rank_pattern": {r"layers.\d.up_proj": 2}, "alpha_pattern": {"1.up_proj": 2}},
        {"target_modules": UP, "layers_to_transform": [0, 1], "layers_pattern": ["h", "layers"]},
        {"target_modules": UP, "exclude_modules": ["up_proj"], "rank_pattern": {"up_proj": 2}},
    ],
)
def test_names_that_exist(fields: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_targets(Mixed(), settings(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": {"up_proj", "up_porj"}}, r"modules \['up_porj'\] not found .* nearest: \['up_proj'\]"),
        ({"target_modules": {"layers.2.up_proj"}}, r"not found in the base model; nearest: \['layers.\d.up_proj'\]"),
        ({"target_modules": {"zzz"}}, r"not found in the base model; there are \['lm_head', 'up_proj'\]"),
        ({"target_modules": "up_proj"}, r"not found .* a str must match whole names, .* there are \['lm_head', 'up_"),
        ({"target_modules": ".*("}, r"'\.\*\(' in the configuration is not a regular expression: missing \)"),
        ({"target_modules": UP, "exclude_modules": "("}, r"'\(' in the configuration is not a regular expression"),
        ({"target_modules": None, "modules_to_save": ["lm_haed"]}, r"_save \['lm_haed'\] not .* \['lm_head'\]"),
        ({"target_modules": None, "modules_to_save": "lm_head"}, r"must be a list of names; .* Pass \['lm_head'\]"),
        ({"target_modules": UP, "rank_pattern": {"up_porj": 2}}, r"rank_pattern \['up_porj'\] not .* adapted layers;"),
        ({"target_modules": UP, "alpha_pattern": {"lm_head": 2}}, r"alpha_pattern \['lm_head'\] not found in the adap"),
        ({"target_modules": UP, "layers_to_transform": [1, 2], "layers_pattern": "layers"}, r"\[2\] not found: 2 lay"),
        (
            {"target_modules": UP, "layers_to_transform": 0, "layers_pattern": "h"},
            "0 layers hold .* layers_pattern='h'",
        ),
        (
            {"target_modules": {"emb"}},
            r"adapts linear layers; got Embedding. Leave it out .* exclude_modules=\['emb'\]",
        ),
        ({"target_modules": {"conv"}}, "LoRAMoE adapts linear layers; got Conv1d. Leave it out of target_modules, or"),
        ({"target_modules": {"attention"}}, "adapts linear layers; got MultiheadAttention"),
        ({"target_modules": {"out_proj"}}, "adapts linear layers; got NonDynamicallyQuantizableLinear"),
    ],
)
def test_names_that_match_nothing_adaptable(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        validate_targets(Mixed(), settings(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "targets", "message"),
    [
        ("mixtral", {"q_proj", "gate_proj"}, r"\['gate_proj'\] not found .* fused experts .* model.layers.\*.mlp.exp"),
        ("mixtral", {"q_proj", "w1"}, r"Target modules \['w1'\] not found .* fused experts cannot be adapted, here"),
        ("mixtral", {"block_sparse_moe.experts.0.w1"}, "weights of fused experts cannot be adapted"),
        ("mixtral", r".*experts\.down_proj", "weights of fused experts cannot be adapted"),
        ("mixtral", {"mlp.experts"}, "Fused experts cannot be adapted; got MixtralExperts"),
        ("mixtral", {"gate"}, r"Routers cannot be adapted; got MixtralTopKRouter. .* exclude_modules=\['mlp.gate'\]"),
        ("llama4_text", {"router"}, "Routers cannot be adapted; got Llama4Router"),
        ("qwen2_moe", {"shared_expert_gate"}, "Routers cannot be adapted; got Linear"),
        ("zaya", {"fc1"}, "Routers cannot be adapted; got Linear"),
        ("jetmoe", {"input_linear"}, "Fused experts cannot be adapted; got JetMoeParallelExperts"),
    ],
)
def test_experts_and_routers_as_targets(model_type: str, targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_targets(fused(model_type), settings(target_modules=targets))


@pytest.mark.parametrize("targets", [{"gate_proj", "up_proj", "q_proj"}, r".*\.(gate|up)_proj"])
def test_names_of_shared_and_fused_experts_are_reported_once(targets: Any) -> None:
    with pytest.warns(UserWarning, match=r"fused experts, which stay frozen: model.layers.\*.mlp.experts") as caught:
        validate_targets(fused("qwen2_moe"), settings(target_modules=targets))
    assert len(caught) == 1


def test_a_second_adapter_meets_the_names_of_the_base_model() -> None:
    model = Mixed()
    assert expand_all_linear(model) == {"layers.0.up_proj", "layers.1.up_proj", "lm_head"}
    get_peft_model(model, LoraConfig(target_modules=["up_proj", "emb"], modules_to_save=["lm_head"]))
    validate_targets(model, settings(target_modules=UP, modules_to_save=["lm_head"], rank_pattern={"up_proj": 2}))
    assert expand_all_linear(model) == {"layers.0.up_proj", "layers.1.up_proj"}
    refused = {"base_layer": "not found", "default": "not found", "emb": "got Emb", "lm_head": "got ModulesToSave"}
    for target, message in refused.items():
        with pytest.raises(ValueError, match=message):
            validate_targets(model, settings(target_modules=[target]))
