"""What is logged of the whole model and of its parts, by known answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from loramoe.analysis.log import PARTS_PREFIX, log_values, split_parts


def test_values_by_known_answer(make_stats):
    stats = make_stats(own=1.0)
    gate_TLE = stats.gate_TLE.copy()
    gate_TLE[:, 1] = 0.25  # one linear layer of the first decoder layer, `down_proj`, is even
    values = log_values(dataclasses.replace(stats, gate_TLE=gate_TLE))
    uneven = (250**2 * 4 / 3) ** 0.5 / 750
    expected = {
        "blc": 21,
        "cov": uneven * 5 / 6,
        "entropy": 0.9,
        "share/type0/group0": 11 / 12,
        "share/type0/group1": 1 / 12,
        "routing/blc/early": 1 + 2,
        "routing/blc/middle": 3 + 4,
        "routing/blc/late": 5 + 6,
        "routing/cov/early": uneven / 2,
        "routing/cov/up_proj": uneven,
        "routing/cov/down_proj": uneven * 2 / 3,
        "routing/share/type1/group1/early": 0.75,
        "routing/share/type1/group1/late": 1,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert {name for name in values if not name.startswith(PARTS_PREFIX)} == {
        *("blc", "cov", "entropy"),
        *(f"share/type{t}/group{g}" for t in (0, 1) for g in (0, 1)),
    }


def test_thirds_hold_whole_decoder_layers_and_all_of_them():
    names = [f"model.layers.{layer}.mlp.{kind}" for layer in range(32) for kind in ("gate_proj", "up_proj")]
    parts = split_parts([*names, "lm_head"])
    assert [len(parts[depth]) for depth in ("early", "middle", "late")] == [22, 22, 21]
    assert parts["early"] + parts["middle"] + parts["late"] == list(range(65))
    assert parts["lm_head"] == [64]


def test_few_layers_have_no_thirds_and_one_kind_is_no_part():
    assert split_parts(["layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]) == {}
    assert np.all(split_parts(["layers.0.up_proj", "layers.0.down_proj"])["down_proj"] == [1])
