"""LoRAMoE on the architectures of transformers: which linears are the MLP's, and any linear as a target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from loramoe.hooks import last_balance
from loramoe.layer import LoraMoeLayer
from loramoe.model import MLP_LINEARS

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
LLAMA = SIZE | {"intermediate_size": 48, "num_key_value_heads": 1, "pad_token_id": 0, "max_position_embeddings": 64}
HEAD = {"head_dim": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
OPT = SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0}
# Of each architecture: a tiny configuration, its attention's linears, one linear alone.
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "llama": (LLAMA, ["q_proj", "k_proj", "v_proj", "o_proj"], "up_proj"),
    "mistral": (LLAMA | HEAD, ["q_proj", "k_proj", "v_proj", "o_proj"], "down_proj"),
    "qwen3": (LLAMA | HEAD, ["q_proj", "k_proj", "v_proj", "o_proj"], "gate_proj"),
    "gemma3_text": (LLAMA | HEAD, ["q_proj", "k_proj", "v_proj", "o_proj"], "o_proj"),
    "phi3": (LLAMA, ["qkv_proj", "o_proj"], "gate_up_proj"),
    "gpt2": (GPT2, ["c_attn", "attn.c_proj"], "mlp.c_fc"),
    "gpt_neox": (SIZE | {"intermediate_size": 48}, ["query_key_value", "attention.dense"], "dense_4h_to_h"),
    "opt": (OPT, ["q_proj", "k_proj", "v_proj", "out_proj"], "fc1"),
}


def tiny(architecture: str) -> nn.Module:
    """A model of the architecture with random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture][0])
    return AutoModelForCausalLM.from_config(config).eval()


def linears_of(model: nn.Module) -> set[str]:
    """Names of all linears but the output embedding, which "all-linear" leaves out."""
    head = model.get_output_embeddings()
    return {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}


def adapted_linears(model: nn.Module) -> set[str]:
    """Names of the linears that got experts."""
    return {name for name, module in model.named_modules() if isinstance(module, LoraMoeLayer)}


def named(linears: set[str], suffixes: Any) -> set[str]:
    """Those of the linears that end with one of the suffixes."""
    return {linear for linear in linears if any(linear.endswith(f".{suffix}") for suffix in suffixes)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("which", "lora_nums"),
    [("the MLP", 8), ("attention", 3), ("one", 1), ("all", 2), ("all-linear", 3)],
)
def test_any_linear_can_be_a_target(architecture: str, which: str, lora_nums: int, ids: Tensor, perturb: Any) -> None:
    _, attention, one = ARCHITECTURES[architecture]
    base = tiny(architecture)
    everything, logits = linears_of(base), base(ids).logits
    targets, wanted = {
        "the MLP": (None, named(everything, MLP_LINEARS[architecture])),
        "attention": (attention, named(everything, attention)),
        "one": ([one], named(everything, [one])),
        "all": ([*attention, *MLP_LINEARS[architecture]], everything),
        "all-linear": ("all-linear", everything),
    }[which]
    blc_weight = 0.1 if lora_nums > 1 else 0
    model = get_peft_model(base, LoraMoeConfig(target_modules=targets, lora_nums=lora_nums, r=2, blc_weight=blc_weight))
    assert adapted_linears(base) == wanted
    assert torch.equal(model(ids).logits, logits)  # B is zero; x + 0 is exact
    assert not torch.allclose(perturb(model)(ids).logits, logits, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_constraint_and_gradients(architecture: str, ids: Tensor, perturb: Any) -> None:
    model = perturb(get_peft_model(tiny(architecture), LoraMoeConfig(r=2, lora_nums=3, lora_dropout=0))).eval()
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    lm_loss = model(**batch).loss
    loss = model.train()(**batch, task_types=torch.tensor([0, 1])).loss
    loss.backward()
    balance = last_balance(model)
    assert balance.gate_TLE.shape == (2, len(adapted_linears(model.get_base_model())), 3)
    assert loss.item() == pytest.approx(lm_loss.item() + 0.1 * balance.constraint.item(), rel=1e-6)
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {name for name, _ in model.named_parameters() if "loramoe_" in name}


# Some configurations have no default for a size; one activation cannot be made without weights.
WANTED: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": HEAD,
    "ministral": HEAD,
    "nemotron": {"num_key_value_heads": 48},
}
WANTED["apertus"] = {"hidden_act": "silu"}


@pytest.mark.parametrize("model_type", sorted(MLP_LINEARS))
def test_the_linears_we_name_are_the_model_s(model_type: str) -> None:
    if model_type not in CONFIG_MAPPING_NAMES and Version(transformers.__version__) < Version("5.23"):
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    few = {} if model_type in ("gemma3", "gpt_neo", "qwen3_5") else {"num_hidden_layers": 2}
    config = AutoConfig.for_model(model_type, **few, **WANTED.get(model_type, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = linears_of(model)
    for linear in MLP_LINEARS[model_type]:
        assert named(linears, [linear]), f"{model_type} has no linear {linear}: {sorted(linears)}"
    chosen = named(linears, MLP_LINEARS[model_type])
    assert not [linear for linear in chosen if "attn" in linear or "attention" in linear or "vision" in linear]


def test_an_unknown_architecture_wants_names() -> None:
    class Config:
        model_type = "abacus"

        def to_dict(self) -> dict[str, Any]:
            return {"model_type": self.model_type}

    model = nn.Sequential(nn.Linear(4, 4))
    model.config = Config()
    with pytest.raises(
        ValueError, match=r"not known for model_type='abacus'. Name them with target_modules, for example"
    ):
        get_peft_model(model, LoraMoeConfig())
    assert adapted_linears(get_peft_model(model, LoraMoeConfig(target_modules=["0"])).get_base_model()) == {"0"}


def test_a_model_without_configuration_wants_names() -> None:
    with pytest.raises(ValueError, match="not known for model_type="):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraMoeConfig())


class Mixed(nn.Module):
    """One of each that is no linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 4)
        self.convolution = nn.Conv1d(4, 4, 1)
        self.image = nn.Conv2d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)


@pytest.mark.parametrize("target", ["embedding", "convolution", "image", "attention", "norm"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # peft's own, of the norm
def test_what_is_no_linear_is_refused(target: str) -> None:
    model = Mixed()
    kind = type(getattr(model, target)).__name__
    with pytest.raises(ValueError, match=f"LoRAMoE adapts linear layers; got {kind}. Leave it out of target_modules"):
        get_peft_model(model, LoraMoeConfig(target_modules=[target]))
