"""What PEFT promises of a saved adapter: which names its weights have, and onto what they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from tests.conformance.small import Mlp, config, later_peft, rows, seeded

Maker = Callable[..., Any]
NAMES = {f"base_model.model.lin0.loramoe_experts.{part}" for part in ("router", "A", "B")}


@later_peft
@pytest.mark.parametrize("name", ["lin0", "loramoe_experts"])
def test_names_of_weights_do_not_depend_on_the_adapters(name: str) -> None:
    model = get_peft_model(Mlp(), config("lin0", modules_to_save=["lin1"]), adapter_name=name)
    names = NAMES | {"base_model.model.lin1.weight", "base_model.model.lin1.bias"}
    assert set(get_peft_model_state_dict(model, adapter_name=name)) == names


@later_peft
@pytest.mark.filterwarnings("ignore:for base_model.*copying from a non-meta parameter")
def test_a_base_model_partly_on_disk(
    adapted: Maker, saved: Path, tmp_path: Path, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)  # PEFT drops the root of offload_folder, and so writes below the working directory
    parts = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    parts |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    offload = {"offload_folder": tmp_path / "offload"}
    base = AutoModelForCausalLM.from_pretrained(saved.parent / "base", device_map=parts, **offload)
    there = {f"base_model.model.{name}": device for name, device in parts.items()}
    loaded = PeftModel.from_pretrained(base, saved, device_map=there, max_memory={"cpu": 10**9}, **offload)
    assert "meta" in {p.device.type for name, p in loaded.named_parameters() if "loramoe_" in name}
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


@later_peft
@pytest.mark.parametrize("name", ["loramoe_head", "lin0_loramoe_experts"])
def test_modules_of_the_base_model_with_names_like_ours(name: str) -> None:
    class Lookalike(Mlp):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, name)(super().forward(x))
            return out

    source, target = (get_peft_model(seeded(Lookalike), config("lin0", name)).eval() for _ in "12")
    target.base_model.model.lin0.loramoe_experts["default"].A.data.zero_()
    weights = get_peft_model_state_dict(source)
    assert len(weights) == 2 * 3
    assert not torch.equal(target(rows()), source(rows()))
    set_peft_model_state_dict(target, weights)
    assert torch.equal(target(rows()), source(rows()))
