"""What PEFT promises of a tuner, each promise on a model whose adapter has random weights."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraMoeConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from loramoe.hooks import last_balance
from loramoe.layer import LoraMoeLayer

Maker = Callable[..., Any]
TYPES = torch.tensor([0, 1])


def layers_of(model: nn.Module) -> dict[str, LoraMoeLayer]:
    """The adapted linears by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraMoeLayer)}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def saved(adapted: Maker, tmp_path: Path) -> Path:
    """Folder of a saved adapter, whose configuration names a saved base model beside it."""
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    model.unload().save_pretrained(tmp_path / "base")
    return tmp_path / "adapter"


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_get_peft_model_trains_the_adapter_alone(adapted: Maker) -> None:
    model = adapted()
    assert type(model) is PeftModelForCausalLM
    assert len(layers_of(model)) == 2 * 3
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".loramoe_" in name}


def test_saved_weights_come_back_bit_for_bit(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    model = adapted()
    weights = load_file(saved / "adapter_model.safetensors")
    own = get_peft_model_state_dict(model)
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    loaded = PeftModel.from_pretrained(tiny_llama(), saved)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not trainable(loaded)
    assert trainable(PeftModel.from_pretrained(tiny_llama(), saved, is_trainable=True)) == trainable(model)


def test_low_cpu_mem_usage(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    loaded = PeftModel.from_pretrained(tiny_llama(), saved, low_cpu_mem_usage=True)
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)
    empty = get_peft_model(tiny_llama(), LoraMoeConfig(), low_cpu_mem_usage=True)
    assert {p.device.type for name, p in empty.named_parameters() if "loramoe_" in name} == {"meta"}


@pytest.mark.parametrize("load", [AutoPeftModelForCausalLM, AutoModelForCausalLM])
def test_from_the_folder_alone(load: Any, adapted: Maker, saved: Path, ids: Tensor) -> None:
    loaded = load.from_pretrained(saved).eval()
    assert len(layers_of(loaded)) == 6
    assert torch.equal(loaded(ids).logits, adapted()(ids).logits)


def test_load_adapter_of_transformers(adapted: Maker, tiny_llama: Maker, saved: Path, ids: Tensor) -> None:
    wanted, base = adapted()(ids).logits, tiny_llama()(ids).logits
    model = tiny_llama()
    model.load_adapter(str(saved), adapter_name="first")
    assert torch.equal(model(ids).logits, wanted)
    assert last_balance(model) is None
    model(ids, task_types=TYPES)
    assert last_balance(model, "first").linears == tuple(layers_of(model))
    model.disable_adapters()
    assert torch.equal(model(ids).logits, base)
    model.enable_adapters()
    model.add_adapter(LoraMoeConfig(lora_nums=5, target_modules=["q_proj"]), adapter_name="second")
    model.set_adapter("second")
    assert torch.equal(model(ids).logits, base)  # its B is zero
    model.delete_adapter("second")
    model.set_adapter("first")
    assert torch.equal(model(ids).logits, wanted)


def test_saving_by_transformers(adapted: Maker, tiny_llama: Maker, saved: Path, tmp_path: Path, ids: Tensor) -> None:
    model = tiny_llama()
    model.load_adapter(str(saved))
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again")
    assert torch.equal(again(ids).logits, adapted()(ids).logits)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_inject_adapter_in_model(low_cpu_mem_usage: bool, adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    source = adapted(lora_dropout=0)
    config = LoraMoeConfig(lora_nums=3, r=2, lora_dropout=0)
    model = inject_adapter_in_model(config, tiny_llama(), low_cpu_mem_usage=low_cpu_mem_usage)
    weights = {name.removeprefix("base_model.model."): w for name, w in get_peft_model_state_dict(source).items()}
    result = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "loramoe_" in name]
    assert torch.equal(model.eval()(ids).logits, source(ids).logits)
    assert get_peft_model_state_dict(model).keys() == weights.keys()
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    assert torch.equal(model.train()(**batch).loss, source.train()(**batch).loss)  # the hooks came along


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters, an inconsistency")
def test_inject_by_the_names_of_the_weights(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    source = adapted(target_modules=["gate_proj"], layers_to_transform=[1])
    weights = {name.removeprefix("base_model.model."): w for name, w in get_peft_model_state_dict(source).items()}
    config = LoraMoeConfig(lora_nums=3, r=2, target_modules=["gate_proj"])
    model = inject_adapter_in_model(config, tiny_llama(), state_dict=weights)
    set_peft_model_state_dict(model, weights)
    assert list(layers_of(model)) == ["model.layers.1.mlp.gate_proj"]
    assert torch.equal(model.eval()(ids).logits, source(ids).logits)


# --- several adapters -------------------------------------------------------------------------------------------------


@pytest.fixture
def two(adapted: Maker, perturb: Maker) -> Any:
    """A model with two adapters: 3 experts of rank 2 on the MLP, and 5 of rank 3 on q_proj and up_proj."""
    model = adapted()
    model.add_adapter("two", LoraMoeConfig(lora_nums=5, r=3, target_modules=["q_proj", "up_proj"]))
    return perturb(model)


def test_adding_an_adapter_changes_nothing_yet(adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    logits, trained = model(ids).logits, trainable(model)
    model.add_adapter("two", LoraMoeConfig(lora_nums=5, r=3, target_modules=["q_proj"], init_lora_weights=False))
    assert torch.equal(model(ids).logits, logits)
    assert trainable(model) == trained


def test_switching_between_adapters(two: Any, adapted: Maker, ids: Tensor) -> None:
    up = "base_model.model.model.layers.0.mlp.up_proj"
    layer = layers_of(two)[up]
    assert (layer.lora_nums, layer.r) == ({"default": 3, "two": 5}, {"default": 2, "two": 3})
    assert layer.loramoe_A["two"].weight.shape == (5 * 3, 32)
    first = two(ids).logits
    two.set_adapter("two")
    assert trainable(two) == {name for name, _ in two.named_parameters() if ".two." in name}
    second = two(ids).logits
    assert not torch.allclose(first, second, atol=1e-2)
    two.set_adapter("default")
    assert torch.equal(two(ids).logits, first)


def test_each_adapter_is_what_it_is_alone(two: Any, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    two.save_pretrained(tmp_path)
    for name, folder in {"default": tmp_path, "two": tmp_path / "two"}.items():
        two.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_llama(), folder)
        assert torch.equal(alone(ids).logits, two(ids).logits)


def test_both_adapters_at_once(two: Any, ids: Tensor) -> None:
    layer = layers_of(two)["base_model.model.model.layers.0.mlp.up_proj"]
    x = torch.randn(2, 3, 32)
    deltas = [layer.delta(name, x) for name in ("default", "two")]
    two.base_model.set_adapter(["default", "two"])
    torch.testing.assert_close(layer(x), layer.base_layer(x) + deltas[0] + deltas[1])
    two.train()(ids, labels=ids, task_types=TYPES).loss.backward()
    assert last_balance(two, "default").gate_TLE.shape == (2, 6, 3)
    assert last_balance(two, "two").gate_TLE.shape == (2, 4, 5)
    assert all(p.grad is not None for name, p in two.named_parameters() if "loramoe_" in name)


def test_loading_a_second_adapter(two: Any, adapted: Maker, saved: Path, ids: Tensor) -> None:
    two.load_adapter(saved, adapter_name="three")
    two.set_adapter("three")
    assert torch.equal(two(ids).logits, adapted()(ids).logits)


def test_delete_adapter(two: Any, ids: Tensor) -> None:
    wanted = two(ids).logits
    two.delete_adapter("two")
    assert list(two.peft_config) == ["default"]
    assert two.active_adapters == ["default"]
    assert not [name for name, _ in two.named_parameters() if ".two." in name]
    assert all("two" not in (layer.lora_nums | layer.scaling) for layer in layers_of(two).values())
    assert torch.equal(two(ids).logits, wanted)
    with pytest.raises(ValueError, match="Adapter two does not exist"):
        two.delete_adapter("two")


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
def test_delete_the_active_adapter(two: Any, ids: Tensor) -> None:
    two.set_adapter("two")
    wanted = two(ids).logits
    two.set_adapter("default")
    two.delete_adapter("default")
    assert two.active_adapters == ["two"]
    assert torch.equal(two(ids).logits, wanted)


def test_delete_the_last_adapter(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    model = adapted()
    model.base_model.delete_adapter("default")
    assert torch.equal(model.base_model(ids).logits, tiny_llama()(ids).logits)


# --- the base model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_disable_adapter_is_the_base_bit_for_bit(
    modules_to_save: Any, adapted: Maker, tiny_llama: Maker, ids: Tensor
) -> None:
    model = adapted(modules_to_save=modules_to_save)
    logits, trained = model(ids).logits, trainable(model)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, tiny_llama()(ids).logits)
    assert torch.equal(model(ids).logits, logits)
    assert trainable(model) == trained


def test_disabled_training_forward_has_no_constraint(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    model = adapted().train()
    with model.disable_adapter():
        loss = model(ids, labels=ids, task_types=TYPES).loss
    assert torch.equal(loss, tiny_llama()(ids, labels=ids).loss)


def test_unload_gives_the_base_back(adapted: Maker, tiny_llama: Maker, ids: Tensor) -> None:
    base = adapted().unload()
    assert torch.equal(base(ids).logits, tiny_llama()(ids).logits)
    assert [name for name, _ in base.named_modules()] == [name for name, _ in tiny_llama().named_modules()]
    assert not base._forward_hooks
    assert not base._forward_pre_hooks
    assert base.state_dict().keys() == tiny_llama().state_dict().keys()


def test_unload_keeps_trained_modules_to_save(adapted: Maker, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head.modules_to_save["default"].weight.clone()
    base = model.unload()
    assert type(base.lm_head) is nn.Linear
    assert torch.equal(base.lm_head.weight, head)


def test_frozen_weights_stay_bit_for_bit(adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids, task_types=TYPES).loss.backward()
        optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trainable(model) != set()


# --- which linears, with which ranks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": ["up_proj"]}, {"0.mlp.up_proj", "1.mlp.up_proj"}),
        ({"target_modules": r".*\.1\.mlp\.(up|down)_proj"}, {"1.mlp.up_proj", "1.mlp.down_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": 1}, {"1.mlp.up_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": [0]}, {"0.mlp.up_proj"}),
        ({"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}, {"1.mlp.up_proj"}),
        (
            {"target_modules": ["up_proj", "q_proj"], "exclude_modules": ["0.mlp.up_proj", "q_proj"]},
            {"1.mlp.up_proj"},
        ),
        ({"exclude_modules": r".*(gate|down)_proj"}, {"0.mlp.up_proj", "1.mlp.up_proj"}),
    ],
)
def test_which_linears_are_adapted(options: dict[str, Any], wanted: set[str], adapted: Maker) -> None:
    names = {name.removeprefix("base_model.model.model.layers.") for name in layers_of(adapted(**options))}
    assert names == wanted


def test_no_linear_of_that_name(adapted: Maker) -> None:
    with pytest.raises(ValueError, match=r"Target modules .*'nowhere'.* not found in the base model"):
        adapted(target_modules=["nowhere"])


def test_patterns_survive_saving(adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(rank_pattern={"up_proj": 5}, alpha_pattern={"layers.1.mlp.down_proj": 20}, use_rslora=True)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    path = "base_model.model.model.layers."
    up, down = (layers_of(loaded)[path + name] for name in ("0.mlp.up_proj", "1.mlp.down_proj"))
    assert (up.r["default"], down.r["default"]) == (5, 2)
    assert (up.scaling["default"], down.scaling["default"]) == (32 / 5**0.5, 20 / 2**0.5)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_modules_to_save(adapted: Maker, tiny_llama: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted(modules_to_save=["lm_head"])
    assert "base_model.model.lm_head.modules_to_save.default.weight" in trainable(model)
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, adapted()(ids).logits, atol=1e-2)


# --- what a model tells of itself -------------------------------------------------------------------------------------


def test_print_trainable_parameters(adapted: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted()
    D, F, E, R = 32, 48, 3, 2  # hidden and intermediate size, experts, rank
    gate_or_up, down = E * R * (D + F) + E * D, E * R * (F + D) + E * F
    experts = 2 * (2 * gate_or_up + down)
    assert model.get_nb_trainable_parameters()[0] == experts
    model.print_trainable_parameters()
    assert f"trainable params: {experts:,} ||" in capsys.readouterr().out


def test_status(two: Any) -> None:
    status = two.get_model_status()
    assert status.peft_types == {"default": "LORAMOE", "two": "LORAMOE"}
    assert (status.adapter_model_type, status.enabled) == ("LoraMoeModel", True)
    assert (status.active_adapters, status.merged_adapters) == (["default"], [])
    assert (status.available_adapters, status.num_adapter_layers) == (["default", "two"], 8)
    layers = {layer.name: layer for layer in two.get_layer_status()}
    up = layers["model.model.layers.0.mlp.up_proj"]
    assert up.module_type == "loramoe.LoraMoeLayer"
    assert up.available_adapters == ["default", "two"]
    assert up.requires_grad == {"default": True, "two": False}


# --- generation, dtypes, compilation, copies --------------------------------------------------------------------------


@pytest.fixture
def prompt(ids: Tensor) -> dict[str, Any]:
    """A batch of prompts, the second one padded on the left."""
    mask = torch.ones(2, 4, dtype=torch.long)
    mask[1, 0] = 0
    return {"input_ids": ids[:, :4] * mask, "attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None}


def test_greedy_generation_with_and_without_cache(adapted: Maker, tiny_llama: Maker, prompt: dict[str, Any]) -> None:
    model = adapted()
    cached = model.generate(**prompt, do_sample=False)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, model.generate(**prompt, do_sample=False, use_cache=False))
    assert not torch.equal(cached, tiny_llama().generate(**prompt, do_sample=False))
    with model.disable_adapter():
        assert torch.equal(model.generate(**prompt, do_sample=False), tiny_llama().generate(**prompt, do_sample=False))


@pytest.mark.parametrize("how", [{"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_sampling_and_beams(how: dict[str, Any], adapted: Maker, prompt: dict[str, Any]) -> None:
    model = adapted()
    torch.manual_seed(0)
    once = model.generate(**prompt, **how)
    torch.manual_seed(0)
    assert torch.equal(once, model.generate(**prompt, **how, use_cache=False))
    assert once.shape == (2, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_half_precision(
    dtype: torch.dtype, autocast_adapter_dtype: bool, tiny_llama: Maker, perturb: Maker, ids: Tensor
) -> None:
    base = tiny_llama().to(dtype)
    config = LoraMoeConfig(lora_nums=3, r=2, lora_alpha=1, lora_dropout=0)
    model = perturb(get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter_dtype))
    adapter_dtype = torch.float32 if autocast_adapter_dtype else dtype
    assert {p.dtype for name, p in model.named_parameters() if "loramoe_" in name} == {adapter_dtype}
    output = model.train()(ids, labels=ids, task_types=TYPES)
    assert output.logits.dtype is dtype
    assert last_balance(model).constraint.dtype is torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if "loramoe_" in name)
    exact = copy.deepcopy(model).float().eval()(ids).logits
    assert (output.logits - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()


def test_gates_are_float32_under_autocast(adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, task_types=TYPES).loss
    loss.backward()
    assert last_balance(model).gate_TLE.dtype is torch.float32
    assert last_balance(model).constraint_L.dtype is torch.float32


@pytest.fixture(params=["eager", "aot_eager"])
def backend(request: pytest.FixtureRequest) -> Any:
    """What torch.compile hands its graphs to (inductor, which builds C++ for minutes, has a test at the layer)."""
    torch.compiler.reset()
    yield request.param
    torch.compiler.reset()


@torch.no_grad()
def test_compiled_forward_in_one_graph(backend: str, adapted: Maker, ids: Tensor) -> None:
    model = adapted()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_compiled_training_with_the_constraint(backend: str, adapted: Maker, ids: Tensor) -> None:
    model = adapted(lora_dropout=0).train()
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    model(**batch).loss.backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    compiled = torch.compile(model, backend=backend)
    for _ in range(2):  # the second time nothing is traced
        model.zero_grad()
        loss = compiled(**batch).loss
        loss.backward()
    torch.testing.assert_close(loss, model(**batch).loss)
    assert eager.keys() == trainable(model)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, eager[name], rtol=1e-4, atol=1e-6)


def torch_copy(model: nn.Module) -> Any:
    """The model as torch.save and torch.load give it back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, torch_copy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "torch", "pickle"],
)
def test_copies_after_a_training_forward(copied: Maker, adapted: Maker, ids: Tensor) -> None:
    model = adapted().train()
    model(ids, labels=ids, task_types=TYPES)
    assert all(layer.gates == {} and not layer.watched for layer in layers_of(model).values())
    twin = copied(model)
    assert torch.equal(twin.eval()(ids).logits, model.eval()(ids).logits)
    batch = {"input_ids": ids, "labels": ids, "task_types": TYPES}
    twin.peft_config["default"].blc_weight = 0.0  # hooks of its own, on a configuration of its own
    with torch.random.fork_rng():
        torch.manual_seed(0)
        without = twin.train()(**batch).loss
        torch.manual_seed(0)
        assert model.train()(**batch).loss > without


@pytest.mark.slow
def test_a_pickled_model_opens_in_another_process(adapted: Maker, tmp_path: Path, ids: Tensor) -> None:
    model = adapted()
    torch.save((model, ids, model(ids).logits), tmp_path / "model.pt")
    script = (
        "import sys, torch; model, ids, logits = torch.load(sys.argv[1], weights_only=False); "
        "assert torch.equal(model(ids).logits, logits); print(model.peft_config['default'].peft_type.value)"
    )
    repository = str(Path(__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt")],
        env=os.environ | {"PYTHONPATH": repository},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "LORAMOE", ran.stderr


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["merge_and_unload", "merge_adapter", "unmerge_adapter", "_check_merge_allowed"])
def test_merging_is_refused(how: str, adapted: Maker) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be merged: its experts are mixed by a router .* unload\(\)"):
        getattr(adapted(), how)()


def test_a_weighted_adapter_is_refused(two: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"cannot be averaged into one: each has a router .*set_adapter"):
        two.add_weighted_adapter(["default", "two"], [0.5, 0.5], "mean")


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
def test_a_mixed_batch_is_refused(call: str, task_type: Any, adapted: Maker, ids: Tensor) -> None:
    model = adapted(task_type=task_type)
    with pytest.raises(NotImplementedError, match=r"got adapter_names=\['default', '__base__'\]. Call the model once"):
        getattr(model, call)(input_ids=ids, adapter_names=["default", "__base__"])


def test_hotswapping_is_refused(adapted: Maker, saved: Path) -> None:
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but LORAMOE was passed"):
        hotswap_adapter(adapted(), saved, adapter_name="default")
    with pytest.raises(ValueError, match="No adapter layers found on the model"):
        prepare_model_for_compiled_hotswap(adapted(), target_rank=8)


def test_mixing_with_other_methods_is_refused(tiny_llama: Maker) -> None:
    with pytest.raises(ValueError, match="'LORAMOE' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny_llama(), LoraMoeConfig(), mixed=True)


def test_the_configuration_is_read_as_it_was_saved(adapted: Maker, saved: Path) -> None:
    read, own = PeftConfig.from_pretrained(saved), adapted().peft_config["default"]
    assert type(read) is LoraMoeConfig
    # PEFT saves for inference, and the fixture named the base model.
    read.inference_mode, read.base_model_name_or_path = own.inference_mode, own.base_model_name_or_path
    assert read == own
