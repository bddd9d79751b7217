"""The relative error of each linear: what a loop over tokens and experts says."""

from __future__ import annotations

import pytest
import torch

from loramoe.export import mean_gates
from loramoe.export.adapted import adapted as find
from loramoe.export.adapted import real_tokens, run
from loramoe.export.linear_error import LinearErrors
from loramoe.ops import mixture_reference, route
from tests.helpers import layers_of


@torch.no_grad()
def test_it_is_what_the_equation_says(adapted, rows, batches):
    model = adapted()
    gates = {name: each.mean_E for name, each in mean_gates(model, batches(), progress=False).items()}
    inputs = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, __, name=name: inputs.setdefault(name, []).append(args[0][0]))
        for name, layer in layers_of(model.get_base_model()).items()
    ]
    for row in rows:
        model(torch.tensor([row["input_ids"]]))
    for hook in hooks:
        hook.remove()

    errors = LinearErrors(find(model), gates)
    for batch in batches():
        with errors.of_forward(real_tokens(batch)):
            run(model, batch)
    found = errors.result()
    assert list(found) == list(inputs)
    for name, layer in layers_of(model.get_base_model()).items():
        router, A, B = (weight.double() for weight in layer.weights("default"))
        x = torch.cat(inputs[name]).double()
        real = mixture_reference(x, route(x, router), A, B, layer.scaling["default"])
        export = mixture_reference(x, gates[name].expand(len(x), -1), A, B, layer.scaling["default"])
        assert found[name] == pytest.approx(((export - real).norm() / real.norm()).item(), rel=1e-4)
    assert not any(layer.loramoe_experts["default"]._forward_hooks for layer in layers_of(model).values())
