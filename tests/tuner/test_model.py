"""Adapters on a language model: which layers, which dtype, which implementation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraMoeConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from loramoe import use_implementation
from tests.conformance.small import TASKS, later_peft
from tests.helpers import layers_of

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


def test_all_linear_gives_every_adapter_the_same_layers(tiny_llama: Maker) -> None:
    config = {"lora_nums": 2, "target_modules": "all-linear"}
    model = get_peft_model(tiny_llama(), LoraMoeConfig(**config))
    first = set(layers_of(model))
    assert len(first) == 2 * 7
    for name in ("two", "three"):
        model.add_adapter(name, LoraMoeConfig(**config))
    assert set(layers_of(model)) == first
    assert {tuple(layer.loramoe_experts) for layer in layers_of(model).values()} == {("default", "two", "three")}
    assert not [name for layer in layers_of(model).values() for name in layers_of(layer) if name]


def created(base: Any, config: LoraMoeConfig, folder: Path) -> Any:
    return get_peft_model(base, config)


def added(base: Any, config: LoraMoeConfig, folder: Path) -> Any:
    model = get_peft_model(base, LoraMoeConfig())
    model.add_adapter("second", config)
    model.set_adapter("second")
    return model


def from_pretrained(base: Any, config: LoraMoeConfig, folder: Path) -> Any:
    get_peft_model(base, config).save_pretrained(folder)
    return PeftModel.from_pretrained(type(base)(base.config).to(base.dtype), folder, is_trainable=True)


def loaded(base: Any, config: LoraMoeConfig, folder: Path) -> Any:
    model = from_pretrained(base, config, folder)
    model.load_adapter(folder, "second", is_trainable=True)
    model.set_adapter("second")
    return model


@pytest.mark.parametrize(
    ("make", "name", "dtype"),
    [
        (created, "embed_tokens", torch.float16),
        pytest.param(added, "lm_head", torch.bfloat16, marks=later_peft),
        (from_pretrained, "lm_head", torch.bfloat16),
        (loaded, "embed_tokens", torch.bfloat16),
    ],
)
def test_modules_to_save_are_trained_in_float32(
    make: Maker, name: str, dtype: torch.dtype, tiny_llama: Maker, tmp_path: Path
) -> None:
    """A step of 1e-5 is too small for most weights in half precision."""
    model = make(tiny_llama().to(dtype), LoraMoeConfig(lora_nums=2, modules_to_save=[name]), tmp_path).train()
    (copied,) = [p for path, p in model.named_parameters() if "modules_to_save" in path and p.requires_grad]
    before, ids = copied.detach().clone(), torch.arange(64).reshape(2, 32)  # every token of the vocabulary
    output = model(ids, labels=ids, task_types=TYPES)
    assert (copied.dtype, output.logits.dtype) == (torch.float32, dtype)
    output.loss.backward()
    torch.optim.AdamW([copied], lr=1e-5).step()
    moved = (copied != before).any(-1)
    moved[model.config.pad_token_id] = True  # the embedding of padding has no gradient
    assert moved.all()
    assert (copied != before).float().mean() > 0.95


class Scale(nn.Module):
    """Multiplies, and returns its input too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.linear(x), [x, positions]


def test_modules_to_save_that_are_called_by_keyword_and_return_several_tensors() -> None:
    dtype = torch.float16
    base = nn.ModuleDict({"lin0": nn.Linear(10, 10), "scale": Scale()}).to(dtype)
    config = LoraMoeConfig(target_modules=["lin0"], modules_to_save=["scale"])
    model = get_peft_model(base, config).get_base_model()
    x, positions = torch.ones(2, 10, dtype=dtype), torch.arange(2)
    y, (x_again, positions_again) = model["scale"](x=x, positions=positions)
    assert {p.dtype for p in model["scale"].parameters() if p.requires_grad} == {torch.float32}
    assert y.dtype == dtype
    assert torch.equal(x_again, x)
    assert positions_again is positions


@pytest.mark.parametrize(
    ("task_type", "head"), [("SEQ_CLS", "score"), ("TOKEN_CLS", "score"), ("QUESTION_ANS", "qa_outputs")]
)
def test_the_head_of_a_task_is_trained_in_float32(task_type: str, head: str, tmp_path: Path) -> None:
    case, dtype = TASKS[task_type], torch.bfloat16
    model = get_peft_model(case.base().to(dtype), case.config())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base().to(dtype), tmp_path, is_trainable=True)
    for each in (model, loaded):
        heads = {
            n.split(".")[-4]: p.dtype for n, p in each.named_parameters() if "modules_to_save" in n and p.requires_grad
        }
        assert heads == {head: torch.float32}
        assert case.output(each).dtype == dtype


def test_modules_to_save_for_inference_and_without_autocast_keep_the_dtype(
    tiny_llama: Maker, tmp_path: Path, ids: Tensor
) -> None:
    dtype = torch.bfloat16
    config = LoraMoeConfig(lora_nums=2, modules_to_save=["lm_head", "embed_tokens"])
    model = get_peft_model(tiny_llama().to(dtype), config)
    model.save_pretrained(tmp_path)
    plain = get_peft_model(tiny_llama().to(dtype), config, autocast_adapter_dtype=False)
    read = PeftModel.from_pretrained(tiny_llama().to(dtype), tmp_path)
    for each in (plain, read):
        assert {p.dtype for name, p in each.named_parameters() if "modules_to_save" in name} == {dtype}
    assert torch.equal(read(ids).logits, tiny_llama().to(dtype)(ids).logits)


def test_an_implementation_is_chosen_once_for_all_adapters(adapted: Maker, perturb: Maker, ids: Tensor) -> None:
    model = adapted()
    assert {layer.implementation for layer in layers_of(model).values()} == {"fused"}
    use_implementation(model, "eager")
    model.add_adapter("two", LoraMoeConfig(lora_nums=5, target_modules=["q_proj", "up_proj"]))
    perturb(model)
    assert len(layers_of(model)) == 6 + 2
    assert {layer.implementation for layer in layers_of(model).values()} == {"eager"}
    for name in ("default", "two"):
        model.set_adapter(name)
        use_implementation(model, "eager")
        eager = model(ids).logits
        use_implementation(model, "fused")
        torch.testing.assert_close(model(ids).logits, eager)


def test_an_unknown_implementation_or_a_model_without_layers(adapted: Maker) -> None:
    with pytest.raises(ValueError, match=r"\['eager', 'fused'\]; got 'loop'"):
        use_implementation(adapted(), "loop")
    with pytest.raises(ValueError, match=r"Linear has no LoRAMoE layer\. Add an adapter with get_peft_model"):
        use_implementation(nn.Linear(2, 2), "fused")


@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter", "unmerge_adapter", "_check_merge_allowed"])
def test_merging_is_refused(how: str, adapted: Maker) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be merged: .* unload\(\)"):
        getattr(adapted(), how)()


def test_unload_removes_the_hooks_and_keeps_the_trained_copies(adapted: Maker) -> None:
    model = adapted(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight
    base = model.unload()
    assert base.lm_head.weight is head
    assert not base._forward_hooks
    assert not base._forward_pre_hooks
