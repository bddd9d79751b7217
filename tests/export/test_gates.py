"""Mean gates: what a loop over tokens in float64 says, whatever the batches and the padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from loramoe.data import PackedCollator, SftCollator
from loramoe.export import ExportError, mean_gates
from loramoe.ops import route
from tests.helpers import layers_of


def looped(model, rows):
    """Gates of each linear, token by token: each row alone, without padding, the router's inputs seen by hooks."""
    gates, hooks = {}, []
    for name, layer in layers_of(model.get_base_model()).items():
        router = layer.weights("default")[0].double()

        def see(layer, args, output, name=name, router=router):
            gates.setdefault(name, []).extend(route(x, router) for x in args[0].double().flatten(0, -2))

        hooks.append(layer.register_forward_hook(see))
    for row in rows:
        model(torch.tensor([row["input_ids"]]))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(seen) for name, seen in gates.items()}


@torch.no_grad()
def test_they_are_what_a_loop_over_tokens_says(adapted, rows, batches):
    model = adapted()
    expected = looped(model, rows)
    found = mean_gates(model, batches(), progress=False)
    assert list(found) == list(expected) == list(layers_of(model.get_base_model()))
    for name, gates_NE in expected.items():
        mean_E = gates_NE.mean(0)
        spread = ((gates_NE - mean_E).square().sum(-1).mean().sqrt() / mean_E.norm()).item()
        assert found[name].mean_E.dtype == torch.float64
        torch.testing.assert_close(found[name].mean_E, mean_E, rtol=1e-6, atol=1e-7)
        assert found[name].spread == pytest.approx(spread, rel=1e-5)
        assert found[name].tokens == sum(len(row["input_ids"]) for row in rows)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_neither_batches_nor_padding_nor_order_change_them(adapted, rows, batches, data):
    model = adapted()
    expected = mean_gates(model, batches(size=1), progress=False)
    shuffled = data.draw(st.permutations(rows))
    multiple = data.draw(st.sampled_from([1, 8, 32]))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1))))
    parts = [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    other = mean_gates(model, [SftCollator(0, multiple)(part) for part in parts], progress=False)
    for name in expected:
        torch.testing.assert_close(other[name].mean_E, expected[name].mean_E, rtol=1e-6, atol=1e-7)
        assert other[name].spread == pytest.approx(expected[name].spread, rel=1e-5)
        assert other[name].tokens == expected[name].tokens


def test_padding_on_the_left_changes_nothing(adapted, rows, batches):
    model = adapted()
    expected = mean_gates(model, batches(size=1), progress=False)
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row["input_ids"])) + row["input_ids"] for row in rows])
    mask = torch.tensor([[0] * (longest - len(row["input_ids"])) + [1] * len(row["input_ids"]) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for name, found in mean_gates(model, [batch], progress=False).items():
        torch.testing.assert_close(found.mean_E, expected[name].mean_E, rtol=1e-5, atol=1e-6)


def test_packed_rows_are_seen_as_if_each_were_alone(adapted, rows, batches):
    model = adapted()
    expected = mean_gates(model, batches(size=1), progress=False)
    for name, found in mean_gates(model, [PackedCollator()(rows)], progress=False).items():
        torch.testing.assert_close(found.mean_E, expected[name].mean_E, rtol=1e-5, atol=1e-6)
        assert found.tokens == expected[name].tokens


def test_a_batch_without_a_mask_is_all_real(adapted, ids):
    found = mean_gates(adapted(), [{"input_ids": ids}], progress=False)
    assert {each.tokens for each in found.values()} == {ids.numel()}


def test_constant_gates_have_no_spread(adapted, batches):
    model = adapted(lora_nums=4)
    for layer in layers_of(model).values():
        layer.weights("default")[0].data.zero_()
    for found in mean_gates(model, batches(), progress=False).values():
        assert found.mean_E.tolist() == [0.25] * 4
        assert found.spread == 0


def test_no_mean_is_nearer_in_the_mean_square(adapted, rows, batches):
    model = adapted()
    gates = looped(model, rows)
    for name, found in mean_gates(model, batches(), progress=False).items():
        left = (gates[name] - found.mean_E).square().sum()
        for step in torch.eye(3, dtype=torch.float64) * 0.01:
            assert (gates[name] - found.mean_E - step).square().sum() > left
            assert (gates[name] - found.mean_E + step).square().sum() > left


def test_the_layers_keep_no_gates(adapted, batches):
    model = adapted()
    mean_gates(model, batches(), progress=False)
    assert not any(layer.loramoe_experts["default"]._forward_hooks for layer in layers_of(model).values())


class Half(nn.Module):
    """A linear after which half of the tokens are gone, as an expert of a sparse model sees only its own."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return torch.cat([self.mlp(x[:, ::2]), x[:, 1::2]], dim=1)


def test_a_linear_that_does_not_see_every_token_is_refused(adapted, ids):
    model = adapted()
    layer = model.get_base_model().model.layers[1]
    layer.mlp = Half(layer.mlp)
    with pytest.raises(
        ExportError, match=r"layers\.1\.mlp\.mlp\.gate_proj saw 10 tokens, the batch has \[2, 10\] = 20"
    ):
        mean_gates(model, [{"input_ids": ids}], progress=False)


def test_a_linear_that_sees_the_tokens_in_another_order_is_refused(adapted, ids):
    model = adapted()
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x.transpose(0, 1)).transpose(0, 1)
    with pytest.raises(ExportError, match=r"saw 20 tokens, the batch has \[2, 10\] = 20, not \[10, 2\]: which of them"):
        mean_gates(model, [{"input_ids": ids}], progress=False)


def test_no_rows(adapted, ids):
    with pytest.raises(ExportError, match="calibration rows are empty: there are no gates to average"):
        mean_gates(adapted(), [], progress=False)
    with pytest.raises(ExportError, match="calibration rows are empty: they hold no real token"):
        mean_gates(adapted(), [{"input_ids": ids, "attention_mask": torch.zeros_like(ids)}], progress=False)


def test_gates_that_are_not_finite(adapted, ids):
    model = adapted()
    next(iter(layers_of(model).values())).weights("default")[0].data[0, 0] = torch.nan
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.gate_proj has gates that are not finite"):
        mean_gates(model, [{"input_ids": ids}], progress=False)
