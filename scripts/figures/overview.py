"""The overview figure of README: one adapted linear, and the constraint on its gates.

Drawn in units of half an inch. The two groups of experts differ in colour (Okabe and Ito's blue and vermilion), in
hatching and in the number of their type, so that the figure also reads in black and white. With one version of
matplotlib, the command always writes the same bytes.

    python scripts/figures/overview.py      # writes docs/figures/overview.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs/figures/overview.png"

WIDTH, HEIGHT = 20.0, 10.6
INK, GREY, LIGHT = "#222222", "#767676", "#EFEFEF"
COLOUR = {1: "#0072B2", 0: "#D55E00"}
TINT = {1: "#DCEBF5", 0: "#FBE6D8"}
HATCH = {1: "", 0: "////"}

EXPERTS = ((1, 7.75), (1, 6.75), (0, 4.75), (0, 3.75))  # type, and height in the drawing
TYPES = tuple(kind for kind, _ in EXPERTS)
GATES = {1: (0.35, 0.30, 0.21, 0.14), 0: (0.16, 0.29, 0.22, 0.33)}  # mean gates of a sample of each type: an example
ALPHA = 0.3

INPUT_X, FORK_X, GATE_X, SUM_X, OUT_X = 0.7, 1.7, 7.5, 9.0, 10.6
PANEL_X = 12.5
BASE_Y, MIX_Y, ROUTER_Y = 9.55, 5.75, 1.75
DASHED = (0, (4, 2))


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
    _box(axes, 2.5, BASE_Y, 3.9, "$W_0$   frozen linear", LIGHT, GREY)
    _line(axes, (FORK_X, BASE_Y), (2.5, BASE_Y), arrow=True)
    _line(axes, (6.4, BASE_Y), (OUT_X - 0.32, BASE_Y), arrow=True)
    _draw_experts(axes)
    _draw_router(axes)
    _draw_sum(axes)
    _disc(axes, INPUT_X, MIX_Y, "$x$", radius=0.42)


def _draw_experts(axes: Axes) -> None:
    for kind, low, label in ((1, 6.15, "type 1: knowledge questions"), (0, 3.15, "type 0: downstream tasks")):
        axes.add_patch(_rounded(2.15, low, 6.1, 2.75, TINT[kind], COLOUR[kind]))
        axes.text(2.4, low + 2.36, label, color=COLOUR[kind], va="center", weight="bold")
    for e, (kind, y) in enumerate(EXPERTS, start=1):
        _line(axes, (FORK_X, y), (2.7, y), arrow=True)
        _trapezium(axes, 2.7, y, 0.42, 0.16, f"$A_{e}$", kind)
        _line(axes, (4.25, y), (4.75, y), arrow=True)
        _trapezium(axes, 4.75, y, 0.16, 0.42, f"$B_{e}$", kind)
        _line(axes, (6.3, y), (GATE_X - 0.28, y), arrow=True)


def _draw_router(axes: Axes) -> None:
    _box(axes, 2.5, ROUTER_Y, 3.8, "router,  softmax", "white", INK)
    _line(axes, (FORK_X, ROUTER_Y), (2.5, ROUTER_Y), arrow=True)
    _line(axes, (6.3, ROUTER_Y), (GATE_X, ROUTER_Y))
    _line(axes, (GATE_X, ROUTER_Y), (GATE_X, EXPERTS[0][1]), style=DASHED)
    _line(axes, (GATE_X, ROUTER_Y), (PANEL_X, ROUTER_Y), arrow=True, style=DASHED)
    for _, y in EXPERTS:
        _disc(axes, GATE_X, y, "×", radius=0.28)
    axes.text(GATE_X + 0.2, 2.45, "gates $g_1$ … $g_E$", va="center")
    axes.text(2.5, 0.75, "dense: every token uses every expert", va="center", color=GREY)


def _draw_sum(axes: Axes) -> None:
    for _, y in EXPERTS:
        _line(axes, (GATE_X + 0.28, y), (SUM_X, y))
    _line(axes, (SUM_X, EXPERTS[-1][1]), (SUM_X, EXPERTS[0][1]))
    _disc(axes, SUM_X, MIX_Y, "Σ", radius=0.38)
    _line(axes, (SUM_X + 0.38, MIX_Y), (OUT_X, MIX_Y))
    _line(axes, (OUT_X, MIX_Y), (OUT_X, BASE_Y - 0.32), arrow=True)
    axes.text(OUT_X + 0.2, MIX_Y + 0.7, "× α / $R$", va="center")
    _line(axes, (OUT_X + 0.32, BASE_Y), (11.3, BASE_Y), arrow=True)
    _disc(axes, OUT_X, BASE_Y, "+", radius=0.32)
    axes.text(11.45, BASE_Y, "$y$", va="center", size=13)


def _draw_constraint(axes: Axes, left: float) -> None:
    axes.add_patch(_rounded(left, 0.35, WIDTH - left - 0.3, HEIGHT - 0.7, "#FAFAFA", "#BBBBBB"))
    text = left + 0.35
    axes.text(text, 9.78, "localized balancing constraint", weight="bold", va="center")
    Q = [list(GATES[sample]) for sample in (1, 0)]
    signs = [["+" if kind == sample else "−" for kind in TYPES] for sample in (1, 0)]
    Z = [
        [q * (1 + ALPHA * (1 if s == "+" else -1)) for q, s in zip(*rows, strict=True)]
        for rows in zip(Q, signs, strict=True)
    ]
    _matrix(axes, text, 7.5, "$Q$   gates, summed over the real tokens", Q)
    _matrix(axes, text, 5.05, "$I$   1 + a where the types match, else 1 − a", None, signs)
    _matrix(axes, text, 2.6, r"$Z = I \circ Q$   is pushed to be even", Z)
    axes.text(text, 1.75, r"blc = var($Z$) / mean($Z$)$^2$", va="center")
    axes.text(text, 0.95, "loss = LM loss + blc_weight · Σ$_{linears}$ blc", va="center")


def _matrix(
    axes: Axes,
    x: float,
    y: float,
    caption: str,
    values: Sequence[Sequence[float]] | None,
    signs: Sequence[Sequence[str]] | None = None,
) -> None:
    """A matrix of 2 samples × 4 experts with its caption: cells darker where the value is larger, or with signs."""
    cell, first = 0.72, x + 3.35
    axes.text(x, y + 1.7, caption, va="center")
    for m, sample in enumerate((1, 0)):
        row = y + 0.62 * (1 - m)
        name = "question, type 1" if sample else "task, type 0"
        axes.text(first - 0.25, row + 0.31, name, ha="right", va="center", color=COLOUR[sample])
        for e, kind in enumerate(TYPES):
            face = plt.get_cmap("Greys")(0.05 + 1.6 * values[m][e]) if values else "white"
            axes.add_patch(Rectangle((first + cell * e, row), cell, 0.62, facecolor=face, edgecolor=GREY, lw=0.8))
            if signs:
                axes.text(first + cell * (e + 0.5), row + 0.29, signs[m][e], ha="center", va="center")
            if m == 0:
                _strip(axes, first + cell * e, row + 0.68, cell, kind)


def _strip(axes: Axes, x: float, y: float, width: float, kind: int) -> None:
    """The colour of an expert's group, above its column."""
    axes.add_patch(
        Rectangle((x + 0.04, y), width - 0.08, 0.14, facecolor=COLOUR[kind], edgecolor="white", hatch=HATCH[kind], lw=0)
    )


def _trapezium(axes: Axes, x: float, y: float, left: float, right: float, label: str, kind: int) -> None:
    corners = [(x, y - left), (x, y + left), (x + 1.55, y + right), (x + 1.55, y - right)]
    axes.add_patch(Polygon(corners, facecolor="white", edgecolor=COLOUR[kind], hatch=HATCH[kind], lw=1.4))
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(x + 0.775, y, label, ha="center", va="center", bbox=plate)


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
