"""What a run writes down."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

from experiments.knowledge_forgetting.run import Settings, packed, routing, run
from loramoe.report import Shares
from tests.experiments.knowledge_forgetting.made_up import MadeUpScale


def test_a_run_says_what_it_was_and_what_came_of_it():
    settings = Settings("made_up", "loramoe_paper", 1e-2, 64, 2, {"r": 2})
    result = json.loads(json.dumps(run(settings, MadeUpScale(), {"commit": "of the test"})))
    assert result["settings"] == {
        "scale": "made_up",
        "arm": "loramoe_paper",
        "learning_rate": 0.01,
        "rows": 64,
        "seed": 2,
        "changes": {"r": 2},
    }
    assert result["counts"] == {split: {"numbers": 1, "colours": 4} for split in ("validation", "test")}
    hits = np.unpackbits(np.frombuffer(base64.b64decode(result["items"]["test"]["colours"]), np.uint8), count=4)
    assert hits.mean() == result["accuracy"]["test"]["colours"]
    assert result["steps"] == 8
    assert result["provenance"] == {"commit": "of the test"}
    assert result["recipe"]["r"] == 2
    assert result["recipe"]["blc_weight"] == 0.1
    assert sum(result["routing"]["share"]["0"]) == pytest.approx(1)


def test_the_base_is_not_trained():
    result = run(Settings("made_up", "base", 0.0, 0, 0), MadeUpScale(), {})
    assert (result["trainable_parameters"], result["steps"], result["routing"]) == (0, 0, None)


def test_settings_are_told_apart_by_their_names():
    assert Settings("tiny", "full", 3e-5, 640, 1).name == "full-lr3e-05-rows640-seed1"
    changed = Settings("tiny", "loramoe_paper", 1e-3, 640, 1, {"targets": ("up_proj", "down_proj"), "r": 2})
    assert changed.name == "loramoe_paper-lr0.001-rows640-seed1-r=2-targets=up_proj+down_proj"


def test_hits_are_packed_in_order():
    hits = np.array([True, False, False, False, False, False, False, True, True])
    assert base64.b64decode(packed(hits)) == bytes([0b10000001, 0b10000000])


def test_routing_by_hand():
    gate_TLE = torch.tensor([[[0.2, 0.8]], [[0.5, 0.5]]], dtype=torch.float64)
    shares = Shares(gate_TLE, torch.tensor([3.0, 1.0]).double(), 0.0, (0, 1), ("mlp",), (1, 0), torch.zeros(1))
    told = routing(shares)
    assert told["share"] == {"0": [0.8, 0.2], "1": [0.5, 0.5]}
    gates = [(3 * 0.2 + 0.5) / 4, (3 * 0.8 + 0.5) / 4]
    assert told["coefficient_of_variation"] == pytest.approx(np.std(gates, ddof=1) / np.mean(gates))
