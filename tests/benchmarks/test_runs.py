"""Every benchmark end to end on tiny sizes, and what it derives from its seconds, by known answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import check, decode, layer, step
from benchmarks.sides import OURS, LlamaShape, Mixture, NaiveMixture, model_side


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.cpu.json").read_text())


@pytest.mark.slow
def test_layer_measures_every_cell(quick_results: Path) -> None:
    result = load(quick_results, "layer")
    assert len(result["cells"]) == 4
    for cell in result["cells"]:
        assert set(cell["seconds"]) == {*layer.OTHERS, *OURS} == set(cell["saved_bytes"])
        assert {len(taken) for taken in cell["seconds"].values()} == {result["pairs"]}
        assert set(cell["relative_error"]) == (set() if cell["dropout"] else {"naive", *OURS})
        assert cell["saved_bytes"]["base"] == 0 < cell["saved_bytes"]["lora"] < cell["saved_bytes"]["naive"]
    assert list(result["counts"][0]["over_fewest"]) == ["2", "4", "8", "16", "32"]


@pytest.mark.slow
def test_step_measures_every_side(quick_results: Path) -> None:
    everything, without_loops = load(quick_results, "step")["settings"]
    assert set(everything["tokens_per_second"]) == {"base", "lora", "naive", *OURS, "xlora"}
    assert set(without_loops["tokens_per_second"]) == {"base", "lora", *OURS}
    for setting in (everything, without_loops):
        assert setting["out_of_memory"] == []
        assert setting["speed_over_lora"]["lora"]["p50"] == 1
    assert 0 < everything["peak_bytes"]["base"] < everything["peak_bytes"]["lora"] < everything["peak_bytes"]["naive"]


@pytest.mark.slow
def test_decode_measures_every_side(quick_results: Path) -> None:
    (setting,) = load(quick_results, "decode")["settings"]
    assert set(setting["ms_per_token"]) == {"base", "lora", *OURS}
    assert setting["time_over_base"]["base"]["p50"] == 1


@pytest.mark.slow
def test_packing_measures_what_padding_costs(quick_results: Path) -> None:
    for setting in load(quick_results, "packing")["settings"]:
        assert set(setting["speed_over_padded"]) >= {"padded", "packed"}
        assert setting["padding"]["packed"] == 0 < setting["padding"]["padded"]


def test_layer_plans_what_the_bars_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "has_fast_bfloat16", lambda: False)
    assert {cell.dtype for cell in layer.plan("cpu", quick=False).cells} == {"float32"}
    monkeypatch.setattr(layer, "has_fast_bfloat16", lambda: True)
    cpu, gpu = layer.plan("cpu", quick=False), layer.plan("cuda", quick=False)
    assert len(set(cpu.cells)) == 16
    assert {cell.features for cell in cpu.cells} == {(1024, 2816), (2048, 5504)}
    assert {(cell.features, cell.tokens, cell.dtype) for cell in gpu.cells} == {((4096, 11008), 16384, "bfloat16")}
    assert cpu.pairs >= 9 <= gpu.pairs


def test_comparison_by_known_answer() -> None:
    seconds = {"base": [1.0, 2.0, 1.0], "lora": [1.4, 2.4, 1.4], "naive": [3.0, 4.0, 3.0], "fused": [1.2, 2.2, 1.2]}
    compared = layer.compare(seconds)
    assert compared["added_over_naive"] == pytest.approx({"lora": 0.2, "fused": 0.1})
    assert compared["added_over_lora"] == pytest.approx({"naive": 5.0, "fused": 0.5})
    assert compared["time_over_base"]["fused"]["p50"] == pytest.approx(1.2)


def test_speed_by_known_answer() -> None:
    compared = step.compare({"lora": [1.0, 1.0, 4.0], "fused": [0.5, 0.5, 2.0]}, tokens=100, ideal=0.25)
    assert compared["tokens_per_second"] == {"lora": 100, "fused": 200}
    assert compared["speed_over_lora"]["fused"] == {"p20": 2, "p50": 2, "p80": 2}
    assert compared["share_of_matrix_rate"] == {"lora": 0.25, "fused": 0.5}


def test_flops_are_those_that_torch_counts_in_the_frozen_model() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    shape, rows, length = LlamaShape(3, 32, 48, 2, 64, 32), 2, 8
    base = shape.build(torch.device("cpu"), torch.float32)
    ids = torch.zeros(rows, length, dtype=torch.long)
    side = model_side("base", base, Mixture())
    with FlopCounterMode(display=False) as counter:
        side(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    # torch counts products alone here, and the gradient of the first layer's MLP input, which an adapter does not need
    attention = rows * length * 2 * shape.hidden * (length / 2) * (2 * shape.layers + 4 * (shape.layers - 1))
    first = rows * length * 2 * (2 * shape.hidden * shape.intermediate)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for op, flops in counted.items() if op in ("aten.mm", "aten.addmm"))
    assert step.flops(shape, rows, length) == pytest.approx(products - first + attention)


@pytest.mark.parametrize("name", ["naive", *OURS])
def test_a_wrong_side_is_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = check.linear_side

    def wrong(side: str, base: nn.Linear, mixture: Mixture) -> nn.Module:
        built = build(side, base, mixture)
        if side == name:
            built.register_forward_hook(lambda _module, _args, y: y * 1.001)
        return built

    monkeypatch.setattr(check, "linear_side", wrong)
    base = nn.Linear(16, 24, bias=False).requires_grad_(False)
    with pytest.raises(AssertionError, match=f"{name} is off by .* not timed"):
        check.check(base, torch.randn(5, 16), torch.randn(5, 24), Mixture())


def test_lora_that_is_not_its_base_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    build = check.linear_side
    monkeypatch.setattr(check, "linear_side", lambda side, *rest: build("naive" if side == "lora" else side, *rest))
    base = nn.Linear(16, 24, bias=False).requires_grad_(False)
    with pytest.raises(AssertionError, match="plain LoRA with a zero B is not its base: not timed"):
        check.check(base, torch.randn(5, 16), torch.randn(5, 24), Mixture())


@pytest.fixture
def generating() -> dict[str, nn.Module]:
    base = LlamaShape(2, 32, 48, 2, 64, 32).build(torch.device("cpu"), torch.float32)
    return {name: model_side(name, base, Mixture()).eval() for name in decode.SIDES}


def test_decode_refuses_sides_that_are_not_their_base(generating: dict[str, nn.Module]) -> None:
    ids = torch.arange(6)[None]
    decode.check(generating, ids)
    mlp = generating["lora"].base_model.model.model.layers[1].mlp
    mlp.up_proj = NaiveMixture(nn.Linear(32, 48, bias=False), Mixture())
    with pytest.raises(AssertionError, match="lora with a zero B is not its base: not timed"):
        decode.check(generating, ids)


def test_decode_refuses_implementations_that_disagree(generating: dict[str, nn.Module]) -> None:
    generating["fused"].register_forward_hook(
        lambda _module, _args, output: setattr(output, "logits", output.logits + 1)
    )
    with pytest.raises(AssertionError, match="eager and fused disagree: not timed"):
        decode.check(generating, torch.arange(6)[None])


def test_memory_that_runs_out_is_found_and_given_back() -> None:
    def run_out() -> None:
        raise torch.OutOfMemoryError

    assert step.fits(lambda: None)
    assert not step.fits(run_out)
