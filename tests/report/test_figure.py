"""The figure shows what the numbers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from loramoe.report.figure import draw_shares
from loramoe.report.shares import Shares

LINEARS = tuple(f"model.layers.{layer}.mlp.{name}" for layer in range(3) for name in ("up_proj", "down_proj"))


@pytest.fixture
def shares() -> Shares:
    torch.manual_seed(0)
    gate_TLE = torch.randn(2, len(LINEARS), 4, dtype=torch.float64).softmax(-1)
    return Shares(gate_TLE, torch.tensor([5.0, 7.0]), 0.5, (0, 1), LINEARS, (1, 1, 0, 0), torch.full((6,), 0.5 / 6))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1])
    return figures


def test_panels_hold_the_numbers(shares: Shares, drawn: list[Figure], tmp_path: Path):
    draw_shares(shares, tmp_path / "figure.png", "match", 0.1)
    assert imread(tmp_path / "figure.png").shape[2] == 4
    first, second, groups = drawn[0].axes[:3]
    _, gate_TNE = shares.by_layer()
    for panel, gates in zip((first, second), gate_TNE, strict=True):
        assert panel.images[0].get_array().tolist() == gates.tolist()
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, gate_TNE.max().item())
    share_TNG = shares.group_share(gate_TNE)
    drawn_shares = {line.get_label(): list(line.get_xdata()) for line in groups.lines}
    assert drawn_shares["rows of type 0 → experts of type 1"] == share_TNG[0, :, 1].tolist()
    assert len(drawn_shares) == 4


@pytest.mark.parametrize(
    ("target", "weight", "words"),
    [
        ("paper", 0.1, 'blc_target="paper": the matching group is pushed to less'),
        ("match", 0.1, 'blc_target="match": the matching group is pushed to more'),
        ("paper", 0, "no balancing constraint"),
    ],
)
def test_the_title_tells_the_direction(shares, drawn, tmp_path: Path, target: str, weight: float, words: str):
    draw_shares(shares, tmp_path / "figure.png", target, weight)
    assert words in drawn[0].get_suptitle()


def test_lines_differ_without_colour(shares: Shares, drawn: list[Figure], tmp_path: Path):
    draw_shares(shares, tmp_path / "figure.png", "paper", 0.1)
    styles = {(line.get_linestyle(), line.get_marker()) for line in drawn[0].axes[2].lines}
    assert len(styles) == 4
