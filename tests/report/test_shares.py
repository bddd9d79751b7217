"""Shares are weighted by tokens, add up, and do not depend on how rows were divided into batches or processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace as Balance

import pytest
import torch

from loramoe.report.shares import ShareMeter, write_shares

LINEARS = ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj", "head")
EXPERT_TYPES = (1, 1, 0)


def balance(gates: dict[int, list[float]], tokens: dict[int, int], constraint: float = 1.0) -> Balance:
    """A balance whose linear l has the given gates, shifted by l/100 from the first to the last expert."""
    types = tuple(sorted(gates))
    shift_LE = torch.tensor([[-step / 100, 0.0, step / 100] for step in range(len(LINEARS))])
    return Balance(
        constraint_L=torch.full((len(LINEARS),), constraint / len(LINEARS)),
        gate_TLE=torch.stack([torch.tensor(gates[t]) + shift_LE for t in types]),
        tokens_T=torch.tensor([float(tokens[t]) for t in types]),
        task_types=types,
        expert_types=EXPERT_TYPES,
        layers=LINEARS,
    )


FIRST = balance({0: [0.2, 0.3, 0.5], 1: [0.6, 0.2, 0.2]}, {0: 30, 1: 10}, constraint=2.0)
SECOND = balance({0: [0.6, 0.3, 0.1]}, {0: 10}, constraint=4.0)


def meter(*balances: Balance) -> ShareMeter:
    filled = ShareMeter()
    for one in balances:
        filled.add(one)
    return filled


def test_means_are_weighted_by_tokens():
    shares = meter(FIRST, SECOND).result()
    assert shares.task_types == (0, 1)
    assert shares.tokens_T.tolist() == [40, 10]
    torch.testing.assert_close(shares.gate_TLE[0, 0], torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64))
    torch.testing.assert_close(shares.gate_TLE[1, 0], torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64))
    assert shares.constraint == 3.0
    assert shares.constraint_L.tolist() == [0.75] * 4


def test_a_batch_of_padding_alone_adds_no_shares():
    """As `last_balance` tells it: no task type had a real token."""
    none = {"task_types": (), "gate_TLE": FIRST.gate_TLE[:0], "tokens_T": FIRST.tokens_T[:0]}
    nothing = Balance(**{**vars(FIRST), **none})
    assert meter(nothing).result() is None
    shares = meter(FIRST, nothing).result()
    assert shares.task_types == (0, 1)
    torch.testing.assert_close(shares.gate_TLE, meter(FIRST).result().gate_TLE)


def test_groups_by_layer_and_flat():
    shares = meter(FIRST, SECOND).result()
    assert shares.groups == (0, 1)
    torch.testing.assert_close(shares.group_share()[0, 0], torch.tensor([0.4, 0.6], dtype=torch.float64))
    layers, gate_TNE = shares.by_layer()
    assert layers == ["0", "1", "head"]
    torch.testing.assert_close(gate_TNE[0, 0], torch.tensor([0.295, 0.3, 0.405], dtype=torch.float64))
    assert shares.flat() == pytest.approx(
        {
            "blc": 3.0,
            "share/type0/group0": 0.415,  # 0.4, and (0 + 1 + 2 + 3) / 4 hundredths of shift
            "share/type0/group1": 0.585,
            "share/type1/group0": 0.215,
            "share/type1/group1": 0.785,
        }
    )


def test_processes_together_are_as_one():
    together = ShareMeter.sum([meter(FIRST).on_cpu(), ShareMeter(), meter(SECOND)]).result()
    alone = meter(FIRST, SECOND).result()
    torch.testing.assert_close(together.gate_TLE, alone.gate_TLE)
    assert together.flat() == pytest.approx(alone.flat())


def test_nothing_added_is_nothing_shared():
    assert ShareMeter().result() is None
    assert ShareMeter.sum([ShareMeter()]).result() is None


def test_json_holds_the_numbers(tmp_path: Path):
    shares = meter(FIRST).result()
    write_shares(shares, tmp_path / "shares.json", blc_target="match")
    written = json.loads((tmp_path / "shares.json").read_text())
    assert written["blc_target"] == "match"
    assert written["linears"] == list(LINEARS)
    assert written["expert_types"] == [1, 1, 0]
    torch.testing.assert_close(torch.tensor(written["gate_TLE"], dtype=torch.float64), shares.gate_TLE)
