"""The overview figure of README: one adapted linear layer, and what minimising the constraint does to its gates.

The numbers are computed by `loramoe.balance` from one example of mean gates: Z and the constraint before, and the gates
at which Z is even. Drawn in units of half an inch. The two groups of experts differ in colour (Okabe and Ito's blue and
vermilion), in hatching and in the number of their type, so that the figure also reads in black and white. With one
version of matplotlib, the command always writes the same bytes.

    python scripts/figures/overview.py      # writes docs/figures/overview.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from loramoe.balance.constraint import coefficient, localized_balance, match_types

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs/figures/overview.png"

WIDTH, HEIGHT = 20.0, 9.6
INK, GREY, LIGHT = "#222222", "#6A6A6A", "#EFEFEF"
COLOUR = {1: "#0072B2", 0: "#D55E00"}
TINT = {1: "#DCEBF5", 0: "#FBE6D8"}
HATCH = {1: "", 0: "////"}
SAMPLES = {1: "question", 0: "task"}

EXPERTS = ((1, 6.75), (1, 5.75), (0, 3.75), (0, 2.75))  # type, and height in the drawing
TYPES = tuple(kind for kind, _ in EXPERTS)
Q_BEFORE = ((0.20, 0.36, 0.26, 0.18), (0.17, 0.33, 0.29, 0.21))  # an example: both samples prefer expert 2
ALPHA = 0.1  # blc_alpha

INPUT_X, FORK_X, GATE_X, SUM_X, OUT_X = 0.55, 1.35, 6.3, 7.45, 8.7
PANEL_X = 10.4
BASE_Y, MIX_Y, ROUTER_Y = 8.55, 4.75, 1.1
DASHED = (0, (4, 2))
CELL, ROW = 0.84, 0.6


def minimum(Q_ME: Tensor, types_M: Tensor) -> dict[str, Tensor]:
    """Compute what the right-hand side of the figure shows, with blc_target="match".

    Args:
        Q_ME: Mean gates of each sample before; each row sums to 1.
        types_M: Task type of each sample.

    Returns:
        I, Z and blc before; Q, Z and blc after, with even Z; the share of each sample's own group after.
    """
    per_I_ME = coefficient(types_M, TYPES, ALPHA, "match").double()
    I_ME = 1 / per_I_ME
    after_ME = I_ME / I_ME.sum(-1, keepdim=True)  # the only rows of sum 1 with even Z
    return {
        "I": I_ME,
        "Z before": Q_ME * per_I_ME,
        "blc before": localized_balance(Q_ME, per_I_ME),
        "Q after": after_ME,
        "Z after": after_ME * per_I_ME,
        "blc after": localized_balance(after_ME, per_I_ME),
        "own after": (after_ME * match_types(types_M, TYPES)).sum(-1),
    }


def draw(file: Path) -> None:
    """Draw the figure.

    Args:
        file: The PNG to write.
    """
    with plt.rc_context({"font.size": 11, "hatch.linewidth": 0.5, "mathtext.fontset": "dejavusans"}):
        figure = plt.figure(figsize=(WIDTH / 2, HEIGHT / 2))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")
        _draw_layer(axes)
        _draw_constraint(axes, left=PANEL_X)
        figure.savefig(file, dpi=160, facecolor="white", metadata={"Software": None})
        plt.close(figure)


def _draw_layer(axes: Axes) -> None:
    _line(axes, (INPUT_X, MIX_Y), (FORK_X, MIX_Y))
    _line(axes, (FORK_X, ROUTER_Y), (FORK_X, BASE_Y))
    _box(axes, 1.9, BASE_Y, 4.3, "$W_0$   frozen linear layer", LIGHT, GREY)
    _line(axes, (FORK_X, BASE_Y), (1.9, BASE_Y), arrow=True)
    _line(axes, (6.2, BASE_Y), (OUT_X - 0.32, BASE_Y), arrow=True)
    _draw_experts(axes)
    _draw_router(axes)
    _draw_sum(axes)
    _disc(axes, INPUT_X, MIX_Y, "$x$", radius=0.4)


def _draw_experts(axes: Axes) -> None:
    for kind, low, label in ((1, 5.15, "type 1: knowledge questions"), (0, 2.15, "type 0: downstream tasks")):
        axes.add_patch(_rounded(1.65, low, 5.2, 2.75, TINT[kind], COLOUR[kind]))
        axes.text(1.85, low + 2.36, label, color=COLOUR[kind], va="center", weight="bold", size=10.5)
    for e, (kind, y) in enumerate(EXPERTS, start=1):
        _line(axes, (FORK_X, y), (2.1, y), arrow=True)
        _trapezium(axes, 2.1, y, 0.42, 0.16, f"$A_{e}$", kind)
        _line(axes, (3.5, y), (3.95, y), arrow=True)
        _trapezium(axes, 3.95, y, 0.16, 0.42, f"$B_{e}$", kind)
        _line(axes, (5.35, y), (GATE_X - 0.28, y), arrow=True)


def _draw_router(axes: Axes) -> None:
    _box(axes, 1.9, ROUTER_Y, 3.4, "router, softmax", "white", INK)
    _line(axes, (FORK_X, ROUTER_Y), (1.9, ROUTER_Y), arrow=True)
    _line(axes, (5.3, ROUTER_Y), (GATE_X, ROUTER_Y))
    _line(axes, (GATE_X, ROUTER_Y), (GATE_X, EXPERTS[0][1]), style=DASHED)
    _line(axes, (GATE_X, ROUTER_Y), (PANEL_X, ROUTER_Y), arrow=True, style=DASHED)
    for _, y in EXPERTS:
        _disc(axes, GATE_X, y, "×", radius=0.28)
    axes.text(GATE_X + 0.2, 1.6, "gates $g_1$ … $g_E$ per token", va="center")


def _draw_sum(axes: Axes) -> None:
    for _, y in EXPERTS:
        _line(axes, (GATE_X + 0.28, y), (SUM_X, y))
    _line(axes, (SUM_X, EXPERTS[-1][1]), (SUM_X, EXPERTS[0][1]))
    _disc(axes, SUM_X, MIX_Y, "Σ", radius=0.38)
    _line(axes, (SUM_X + 0.38, MIX_Y), (OUT_X, MIX_Y))
    _line(axes, (OUT_X, MIX_Y), (OUT_X, BASE_Y - 0.32), arrow=True)
    axes.text(OUT_X + 0.15, MIX_Y + 0.7, "× α / $R$", va="center")
    _line(axes, (OUT_X + 0.32, BASE_Y), (9.5, BASE_Y), arrow=True)
    _disc(axes, OUT_X, BASE_Y, "+", radius=0.32)
    axes.text(9.65, BASE_Y, "$y$", va="center", size=13)


def _draw_constraint(axes: Axes, left: float) -> None:
    Q_ME, types_M = torch.tensor(Q_BEFORE, dtype=torch.float64), torch.tensor(list(SAMPLES))
    found = minimum(Q_ME, types_M)
    axes.add_patch(_rounded(left, 0.2, WIDTH - left - 0.2, HEIGHT - 0.4, "#FAFAFA", "#BBBBBB"))
    text, first, second = left + 0.3, left + 1.95, left + 5.8
    own = found["own after"][0].item()
    axes.text(text, 9.0, f"Z is even when the own group gets {own:.2f}", weight="bold", va="center")
    for x, caption in ((first, "before"), (second, "after minimising")):
        axes.text(x + 2 * CELL, 8.38, caption, ha="center", va="center", style="italic")
    for y, caption in (
        (6.15, "$Q$   mean gate"),
        (4.1, f"$I$   1 ± a, a = {ALPHA}"),
        (2.05, '$Z$ = $Q$ / $I$   ("match")'),
    ):
        axes.text(text, y + 2 * ROW + 0.5, caption, va="center")
    _matrix(axes, first, 6.15, Q_ME, labels=True)
    _matrix(axes, second, 6.15, found["Q after"])
    _matrix(axes, first, 4.1, found["I"], labels=True, shades=False)
    _matrix(axes, first, 2.05, found["Z before"], labels=True)
    _matrix(axes, second, 2.05, found["Z after"])
    axes.text(second, 5.0, f"own group:  {own:.2f}", va="center")
    axes.text(second, 4.4, f"other group:  {1 - own:.2f}", va="center")
    axes.text(text, 1.45, "blc", va="center")
    for x, name in ((first, "blc before"), (second, "blc after")):
        axes.text(x + 2 * CELL, 1.45, f"{found[name].item():.3f}", ha="center", va="center")
    formula = r"blc = var($Z$) / mean($Z$)$^2$      loss = LM loss + blc_weight · Σ$_{layers}$ blc"
    axes.text(text, 0.72, formula, va="center", size=9.5)


def _matrix(axes: Axes, x: float, y: float, values: Tensor, labels: bool = False, shades: bool = True) -> None:
    """A matrix of 2 samples × 4 experts: the numbers, on cells that are darker where a number is larger."""
    for m, (sample, name) in enumerate(SAMPLES.items()):
        row = y + ROW * (1 - m)
        if labels:
            axes.text(x - 0.15, row + ROW / 2, name, ha="right", va="center", color=COLOUR[sample])
        for e, kind in enumerate(TYPES):
            value = values[m, e].item()
            face = plt.get_cmap("Greys")(min(max((value - 0.14) * 2, 0), 0.48)) if shades else "white"
            axes.add_patch(Rectangle((x + CELL * e, row), CELL, ROW, facecolor=face, edgecolor=GREY, lw=0.8))
            number = f"{value:.3f}".lstrip("0") if shades else f"{value:.1f}"
            axes.text(x + CELL * (e + 0.5), row + ROW / 2, number, ha="center", va="center", size=9.5)
            if m == 0:
                _strip(axes, x + CELL * e, row + ROW + 0.06, CELL, kind)


def _strip(axes: Axes, x: float, y: float, width: float, kind: int) -> None:
    """The colour of an expert's group, above its column."""
    axes.add_patch(
        Rectangle((x + 0.04, y), width - 0.08, 0.14, facecolor=COLOUR[kind], edgecolor="white", hatch=HATCH[kind], lw=0)
    )


def _trapezium(axes: Axes, x: float, y: float, left: float, right: float, label: str, kind: int) -> None:
    corners = [(x, y - left), (x, y + left), (x + 1.4, y + right), (x + 1.4, y - right)]
    axes.add_patch(Polygon(corners, facecolor="white", edgecolor=COLOUR[kind], hatch=HATCH[kind], lw=1.4))
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(x + 0.7, y, label, ha="center", va="center", bbox=plate)


def _box(axes: Axes, x: float, y: float, width: float, label: str, face: str, edge: str) -> None:
    axes.add_patch(_rounded(x, y - 0.5, width, 1.0, face, edge))
    axes.text(x + width / 2, y, label, ha="center", va="center")


def _rounded(x: float, y: float, width: float, height: float, face: str, edge: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.18"
    return FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor=edge, lw=1.2)


def _disc(axes: Axes, x: float, y: float, label: str, radius: float) -> None:
    axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, lw=1.2, zorder=3))
    axes.text(x, y, label, ha="center", va="center_baseline", zorder=4, size=13)


def _line(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], arrow: bool = False, style: object = "-"
) -> None:
    look = {"arrowstyle": "-|>" if arrow else "-", "color": INK, "lw": 1.2, "linestyle": style}
    axes.annotate("", end, start, arrowprops={**look, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11})


def main() -> None:
    """Write the figure."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw(FIGURE)
    print(f"wrote {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
