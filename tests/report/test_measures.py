"""The numbers of a report, against those that are known and against loops by their definitions."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from loramoe.report.layers import bands_of, layers_of
from loramoe.report.measures import LIKED, group_shares, liked_tokens, measure, normalised_entropy, variation
from loramoe.report.routing import Routing

LINEARS = ("h.0.up", "h.0.down", "h.1.up", "head")
EXPERT_TYPES = (1, 0, 2, 0)


def make_routing() -> Routing:
    """Random gates of two task types over 4 linears, 4 experts and 6 tokens."""
    generator = torch.Generator().manual_seed(1)
    gates_KVE = torch.rand(3, 6, 4, generator=generator, dtype=torch.float64) + 0.1
    count_V = torch.tensor([9, 0, 1, 5, 4, 7])
    gates_TLE = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64) + 0.1
    tokens_T = torch.tensor([16, 10])
    return Routing(
        Q_TLE=gates_TLE / gates_TLE.sum(-1, keepdim=True) * tokens_T[:, None, None],
        entropy_TL=torch.rand(2, 4, generator=generator, dtype=torch.float64) * tokens_T[:, None],
        tokens_T=tokens_T,
        Q_KVE=gates_KVE / gates_KVE.sum(-1, keepdim=True) * count_V[:, None],
        count_V=count_V,
        rows=3,
        task_types=(0, 7),
        expert_types=EXPERT_TYPES,
        linears=LINEARS,
        bands=bands_of(layers_of(LINEARS)),
    )


def test_entropy_of_no_choice_is_one_and_of_one_expert_none():
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(normalised_entropy(p), torch.tensor([1.0, 0.0, 0.5]))


def test_variation_of_equals_is_none_and_of_one_expert_the_root_of_their_number():
    Q = torch.tensor([[3.0] * 4, [8.0, 0, 0, 0], [1.0, 2, 3, 4]], dtype=torch.float64)
    by_hand = statistics.stdev([1, 2, 3, 4]) / 2.5
    assert variation(Q).tolist() == pytest.approx([0.0, 2.0, by_hand])


def test_shares_of_groups_add_up():
    share_G = group_shares(torch.tensor([0.1, 0.2, 0.3, 0.4]), EXPERT_TYPES)
    torch.testing.assert_close(share_G, torch.tensor([0.6, 0.1, 0.3]))  # types 0, 1, 2


def test_a_token_seen_once_does_not_win():
    gate_VE = torch.tensor([[9.0, 1.0], [6.0, 4.0], [1.0, 0.0], [4.0, 6.0]], dtype=torch.float64)
    count_V = torch.tensor([10, 10, 1, 10])
    first, second = liked_tokens(gate_VE, count_V, min_count=2, top=3)
    mean = 20 / 31
    assert [id for id, _ in first] == [0]
    assert first[0][1] == pytest.approx(0.9 / mean)
    assert [id for id, _ in second] == [3, 1]
    assert liked_tokens(gate_VE, count_V, min_count=1, top=1)[0][0][0] == 2
    assert liked_tokens(gate_VE, count_V, min_count=99, top=3) == [[], []]


def test_a_token_that_would_read_as_once_the_mean_is_not_liked():
    gate_VE = torch.tensor([[1.04, 0.9], [0.96, 1.1]], dtype=torch.float64)
    first, second = liked_tokens(gate_VE, torch.ones(2, dtype=torch.int64), min_count=1, top=2)
    assert first == []
    assert [id for id, _ in second] == [1]


def test_equal_tokens_come_by_id():
    gate_VE = torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * 3, dtype=torch.float64)
    assert [id for id, _ in liked_tokens(gate_VE, torch.ones(4, dtype=torch.int64), 1, 2)[1]] == [1, 2]


def test_all_numbers_by_their_definitions():
    routing = make_routing()
    m = measure(routing, lambda id: f"token {id}", min_count=4, top=3)
    assert (m.layers, m.groups, m.rows) == (["0", "1", "head"], [0, 1, 2], 3)
    assert (m.task_types, m.tokens_T) == ([0, 7], [16, 10])
    of_layer = {"0": (0, 1), "1": (2,), "head": (3,)}
    gate = [[[q / n for q in row] for row in rows] for rows, n in zip(routing.Q_TLE.tolist(), (16, 10), strict=True)]
    for t in range(2):
        for n, linears in enumerate(of_layer.values()):
            for e in range(4):
                assert m.gate_TNE[t][n][e] == pytest.approx(statistics.mean(gate[t][k][e] for k in linears))
            share = [statistics.mean(sum(gate[t][k][e] for e in es) for k in linears) for es in ([1, 3], [0], [2])]
            assert m.share_TNG[t][n] == pytest.approx(share)
            tokens = statistics.mean(routing.entropy_TL[t, k].item() / m.tokens_T[t] / math.log(4) for k in linears)
            assert m.token_entropy_TN[t][n] == pytest.approx(tokens)
            load = statistics.mean(-sum(g * math.log(g, 4) for g in gate[t][k]) for k in linears)
            assert m.load_entropy_TN[t][n] == pytest.approx(load)
            Q = routing.Q_TLE[t].tolist()
            spread = statistics.mean(statistics.stdev(Q[k]) / statistics.mean(Q[k]) for k in linears)
            assert m.variation_TN[t][n] == pytest.approx(spread)
        assert sum(m.share_TG[t]) == pytest.approx(1)
    both = routing.Q_TLE.sum(0).tolist()
    assert m.variation_L == pytest.approx([statistics.stdev(q) / statistics.mean(q) for q in both])
    assert m.variation_N[0] == pytest.approx((m.variation_L[0] + m.variation_L[1]) / 2)


def test_liked_tokens_are_told_with_their_numbers():
    routing = make_routing()
    m = measure(routing, lambda id: f"token {id}", min_count=4, top=3)
    assert [band.layers for band in m.bands] == ["0", "1", "head"]
    for k, band in enumerate(m.bands):
        assert sum(band.gate_E) == pytest.approx(1)
        for e, liked in enumerate(band.liked):
            assert len(liked) <= 3
            assert [token.ratio for token in liked] == sorted((token.ratio for token in liked), reverse=True)
            for token in liked:
                assert token.count >= 4
                assert token.text == f"token {token.id}"
                assert token.gate == pytest.approx(float(routing.Q_KVE[k, token.id, e]) / token.count)
                assert token.ratio == pytest.approx(token.gate / band.gate_E[e])
                assert token.ratio >= LIKED
