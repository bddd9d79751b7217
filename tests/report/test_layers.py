"""Linears are told apart by the layer that their names have the index of, and layers divided into neighbours."""

from __future__ import annotations

import pytest

from loramoe.report.layers import bands_of, layers_of


def test_linears_of_a_layer_come_together_and_others_stay_alone():
    linears = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.11.mlp.up_proj", "lm_head"]
    assert [tuple(layer) for layer in layers_of(linears)] == [("0", (0, 1)), ("11", (2,)), ("lm_head", (3,))]


@pytest.mark.parametrize(
    ("count", "labels"),
    [(1, ["0"]), (2, ["0", "1"]), (3, ["0", "1", "2"]), (4, ["0", "1–2", "3"]), (9, ["0–2", "3–5", "6–8"])],
)
def test_bands_are_neighbours_and_hold_every_linear_once(count: int, labels: list[str]):
    layers = layers_of([f"h.{index // 2}.linear{index % 2}" for index in range(2 * count)])
    bands = bands_of(layers)
    assert [band.label for band in bands] == labels
    assert [position for band in bands for position in band.linears] == list(range(2 * count))
