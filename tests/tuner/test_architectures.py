"""LoRAMoE on architectures of transformers: any linear layer as a target, the constraint, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from loramoe import last_balance
from loramoe.tuner.targets import DEFAULT_TARGETS
from tests.helpers import layers_of

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
LLAMA = SIZE | {"intermediate_size": 48, "num_key_value_heads": 1, "pad_token_id": 0, "max_position_embeddings": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 64, "bos_token_id": 1}
GPT2 |= {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
OPT = SIZE | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0}
# Of each architecture: a tiny configuration, the linear layers of its attention.
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": (LLAMA, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "gemma3_text": (LLAMA | {"head_dim": 16}, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "phi3": (LLAMA, ["qkv_proj", "o_proj"]),
    "gpt2": (GPT2, ["c_attn", "attn.c_proj"]),
    "opt": (OPT, ["q_proj", "k_proj", "v_proj", "out_proj"]),
}


def tiny(architecture: str) -> nn.Module:
    """A model of the architecture with random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture][0])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_linear_layer_can_be_a_target(architecture: str, ids: Tensor, perturb: Any) -> None:
    base = tiny(architecture)
    head, logits = base.get_output_embeddings(), base(ids).logits
    linear = {n for n, m in base.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}
    targets = [*ARCHITECTURES[architecture][1], *DEFAULT_TARGETS[architecture]]
    model = get_peft_model(base, LoraMoeConfig(target_modules=targets, lora_nums=3, r=2))
    assert layers_of(base).keys() == linear
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
    assert balance.gate_TLE.shape == (2, len(layers_of(model)), 3)
    assert loss.item() == pytest.approx(lm_loss.item() + 0.1 * balance.constraint.item(), rel=1e-6)
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {name for name, _ in model.named_parameters() if "loramoe_" in name}
