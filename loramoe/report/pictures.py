"""The pictures of a report: who got the gates, which group served whom, how decided and how even the routers are.

Each is a panel of its own, small enough to be read on a phone; a page sets them beside each other where there is room.
Cividis grows evenly in lightness, the colours of lines are Okabe and Ito's, and lines differ in marker and dash, bars
in hatching as well: all read the same to colour-blind eyes and on a black and white printer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from loramoe.report.measures import Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI: Final = 150
_WIDTH = 4.8  # inches
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
_MOST_LABELS = 16
_MOST_NUMBERS = 100  # cells of a heat map that still have room for their values


class Picture(NamedTuple):
    """A picture, and what is said of it.

    Attributes:
        file: Name of the PNG.
        section: Which part of the page it belongs to: `gates`, `shares`, `entropy` or `variation`.
        alt: What it shows, for those who do not see it.
    """

    file: str
    section: str
    alt: str


def draw_all(measures: Measures, folder: Path) -> list[Picture]:
    """Draws the pictures of a report.

    Args:
        measures: The numbers.
        folder: Where the PNGs go.

    Returns:
        The pictures, in the order of the page.
    """
    drawn = []
    for picture, figure in _pictures(measures):
        figure.savefig(folder / picture.file, dpi=DPI)
        drawn.append(picture)
    return drawn


def _pictures(measures: Measures) -> Iterator[tuple[Picture, Figure]]:
    for t, task_type in enumerate(measures.task_types):
        alt = f"Heat map of the mean gate of each expert by layer, on rows of type {task_type}. {_peak(measures, t)}"
        yield Picture(f"experts_gates_type{task_type}.png", "gates", alt), _draw_gates(measures, t)
    alt = f"Bars of the share of each group of experts by task type. {shares_in_words(measures)}"
    yield Picture("experts_shares.png", "shares", alt), _draw_shares(measures)
    alt = "Lines of the share of a group of experts, layer by layer, for each task type; the numbers are in the table."
    yield Picture("experts_shares_by_layer.png", "shares", alt), _draw_shares_by_layer(measures)
    lowest, highest = _range(measures.token_entropy_TN)
    alt = f"Lines of the entropy by layer and task type. That of the tokens' gates is {lowest:.2f} to {highest:.2f}."
    yield Picture("experts_entropy.png", "entropy", alt), _draw_entropy(measures)
    lowest, highest = _range([measures.variation_N])
    alt = f"Lines of the coefficient of variation by layer; over all rows it is {lowest:.3g} to {highest:.3g}."
    yield Picture("experts_variation.png", "variation", alt), _draw_variation(measures)


def shares_in_words(measures: Measures) -> str:
    """Which group got how much of the rows of each type, in a sentence each."""
    return " ".join(
        f"Rows of type {task_type}: "
        + ", ".join(
            f"{share:.1%} to experts of type {group}"
            for group, share in zip(measures.groups, measures.share_TG[t], strict=True)
        )
        + "."
        for t, task_type in enumerate(measures.task_types)
    )


def _peak(measures: Measures, t: int) -> str:
    gate, e, n = max((gate, -e, -n) for n, row in enumerate(measures.gate_TNE[t]) for e, gate in enumerate(row))
    return f"The highest is {gate:.3f}: expert {-e} in layer {measures.layers[-n]}."


def _range(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    return min(map(min, values)), max(map(max, values))


def _draw_gates(measures: Measures, t: int) -> Figure:
    gate_NE = measures.gate_TNE[t]
    top = _range([gate for gate_NE in measures.gate_TNE for gate in gate_NE])[1]  # one scale for all task types
    figure, axes = _panel(min(9.0, 1.6 + 0.22 * len(gate_NE)))
    image = axes.imshow(gate_NE, aspect="auto", cmap="cividis", vmin=0.0, vmax=top, interpolation="nearest")
    if len(gate_NE) * len(gate_NE[0]) <= _MOST_NUMBERS and len(gate_NE[0]) <= 10:
        for n, gate_E in enumerate(gate_NE):
            for e, gate in enumerate(gate_E):
                ink = "white" if gate < 0.5 * top else "black"
                axes.text(e, n, f"{gate:.2f}".removeprefix("0"), color=ink, fontsize=7, ha="center", va="center")
    axes.set_title(f"rows of type {measures.task_types[t]}", fontsize=10)
    _label_experts(axes, measures.expert_types)
    _label_layers(axes.yaxis, measures.layers)
    figure.colorbar(image, label="mean gate", ax=axes)
    return figure


def _label_experts(axes: Axes, expert_types: Sequence[int]) -> None:
    for e in range(1, len(expert_types)):
        if expert_types[e] != expert_types[e - 1]:
            axes.axvline(e - 0.5, color="white", linewidth=3)
    step = -(-len(expert_types) // _MOST_LABELS)
    labels = [f"{e}\n({kind})" for e, kind in enumerate(expert_types)]
    axes.set_xticks(range(0, len(expert_types), step), labels[::step], fontsize=7)
    axes.set_xlabel("expert (its type)")


def _draw_shares(measures: Measures) -> Figure:
    figure, axes = _panel()
    names = [str(task_type) for task_type in measures.task_types]
    below = [0.0] * len(names)
    for g, group in enumerate(measures.groups):
        share_T = [share_G[g] for share_G in measures.share_TG]
        look: dict[str, Any] = {"color": _COLOURS[g % len(_COLOURS)], "hatch": _HATCHES[g % len(_HATCHES)]}
        look |= {"edgecolor": "white", "width": 0.6, "label": f"experts of type {group}"}
        bars = axes.bar(names, share_T, bottom=below, **look)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.bar_label(bars, [f"{share:.1%}" for share in share_T], label_type="center", fontsize=8, bbox=box)
        below = [low + share for low, share in zip(below, share_T, strict=True)]
    axes.set(xlabel="task type of the rows", ylabel="share of the gate weight", ylim=(0, 1))
    axes.set_title("all layers", fontsize=10)
    _add_legend(figure, columns=3)
    return figure


def _draw_shares_by_layer(measures: Measures) -> Figure:
    figure, axes = _panel()
    shown = measures.groups[1:] if len(measures.groups) == 2 else measures.groups  # the other has what is left
    for d, group in enumerate(shown):
        g = measures.groups.index(group)
        for t, task_type in enumerate(measures.task_types):
            share_N = [share_G[g] for share_G in measures.share_TNG[t]]
            _draw_line(axes, share_N, t, d, f"rows of type {task_type} → experts of type {group}")
    _finish_lines(figure, axes, measures.layers, "share of the gate weight", at_most=1)
    return figure


def _draw_entropy(measures: Measures) -> Figure:
    figure, axes = _panel()
    for t, task_type in enumerate(measures.task_types):
        _draw_line(axes, measures.token_entropy_TN[t], t, 0, f"type {task_type}, each token's gates")
        _draw_line(axes, measures.load_entropy_TN[t], t, 1, f"type {task_type}, mean gates")
    _finish_lines(figure, axes, measures.layers, "entropy / log E", at_most=1)
    return figure


def _draw_variation(measures: Measures) -> Figure:
    figure, axes = _panel()
    axes.plot(measures.variation_N, color="black", marker="*", markersize=8, linewidth=2.5, label="all rows")
    for t, task_type in enumerate(measures.task_types):
        _draw_line(axes, measures.variation_TN[t], t, t + 1, f"rows of type {task_type}")
    _finish_lines(figure, axes, measures.layers, "coefficient of variation")
    return figure


def _panel(height: float = 3.1) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _draw_line(axes: Axes, values: Sequence[float], t: int, d: int, label: str) -> None:
    """A line whose colour and marker tell the task type, and whose dash tells the rest."""
    look: dict[str, Any] = {"color": _COLOURS[t % len(_COLOURS)], "marker": _MARKERS[t % len(_MARKERS)]}
    axes.plot(values, linestyle=dash(d), markersize=5, label=label, **look)


def dash(d: int) -> str | tuple[int, tuple[int, ...]]:
    """The dashes of a line, as matplotlib takes them: from the fifth on a stroke and ever more dots.

    Args:
        d: Number of the line among those that its dashes have to tell apart.

    Returns:
        No two are alike.
    """
    return _DASHES[d] if d < len(_DASHES) else (0, (5, *(1,) * (2 * d - 3)))


def _finish_lines(
    figure: Figure, axes: Axes, layers: Sequence[str], quantity: str, at_most: float | None = None
) -> None:
    axes.margins(y=0.15)
    axes.set_ylim(0, at_most and 1.03 * at_most)
    axes.set_ylabel(quantity)
    axes.set_title("layer by layer", fontsize=10)
    axes.grid(alpha=0.3)
    _add_legend(figure, columns=2)
    _label_layers(axes.xaxis, layers)


def _add_legend(figure: Figure, columns: int) -> None:
    """Puts the legend below the panel, and makes the picture taller by what it takes."""
    rows = -(-len(figure.axes[0].get_legend_handles_labels()[0]) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    figure.legend(fontsize=7, loc="outside lower center", ncols=columns, handlelength=3.5)


def _label_layers(axis: Any, layers: Sequence[str]) -> None:
    step = -(-len(layers) // _MOST_LABELS)
    axis.set_ticks(range(0, len(layers), step), layers[::step], fontsize=7)
    axis.set_label_text("layer")
