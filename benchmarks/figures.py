"""Results as figures for README and docs, in colours and markers that also read in black and white.

Each PNG carries a digest of the results that it shows, so that a stale figure is found whatever version of matplotlib
drew it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.bars import Result, load
from benchmarks.tables import DEVICES, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # Okabe and Ito's
    "base": "#767676",
    "lora": "#E69F00",
    "naive": "#D55E00",
    "eager": "#56B4E9",
    "stacked": "#56B4E9",  # the name of eager in results up to 2026-11
    "fused": "#0072B2",
    "xlora": "#CC79A7",
}
MARKERS = {"lora": "s", "naive": "X", "eager": "^", "stacked": "^", "fused": "o"}


def figures(folder: Path) -> dict[Path, tuple[Result, Callable[[Result], Figure]]]:
    """The figures of what has been measured.

    Args:
        folder: Where they belong.

    Returns:
        For each file the result that it shows, and what draws it.
    """
    known = {"layer": _layer, "step": _step}
    measured = {(name, device): load(name, device) for name in known for device in DEVICES}
    return {
        folder / f"benchmark_{name}_{device}.png": (result, known[name])
        for (name, device), result in measured.items()
        if result is not None
    }


def draw_all(folder: Path) -> list[Path]:
    """Draw every figure of what has been measured.

    Args:
        folder: Where to write the PNGs.

    Returns:
        The files.
    """
    drawn = figures(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, (result, draw) in drawn.items():
        draw(result).savefig(file, dpi=150, metadata={"Software": None, "Description": digest(result)})
    return list(drawn)


def stale(folder: Path) -> list[Path]:
    """Figures that are missing, or show other results than the newest.

    Args:
        folder: Where they belong.

    Returns:
        Their files.
    """
    return [file for file, (result, _) in figures(folder).items() if _digest_of(file) != digest(result)]


def digest(result: Result) -> str:
    """What a figure carries to say which result it shows.

    Args:
        result: The result.

    Returns:
        A SHA-256 in hexadecimal.
    """
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _digest_of(file: Path) -> str | None:
    if not file.exists():
        return None
    with Image.open(file) as image:
        return image.info.get("Description")


def _new(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _layer(result: Result) -> Figure:
    """Time over the frozen base's, cell by cell: medians over the rounds, and the three fifths around them."""
    cells = result["cells"]
    figure, (axes,) = _new(1, height=1.6 + 0.3 * len(cells))
    for side, marker in MARKERS.items():
        if side not in cells[0]["time_over_base"]:
            continue
        spans = [cell["time_over_base"][side] for cell in cells]
        middle = [span["p50"] for span in spans]
        around = [[m - s["p20"] for m, s in zip(middle, spans, strict=True)]]
        around += [[s["p80"] - m for m, s in zip(middle, spans, strict=True)]]
        look = {"fmt": marker, "color": COLOURS[side], "label": NAMES[side], "markersize": 6, "elinewidth": 1}
        axes.errorbar(middle, range(len(cells)), xerr=around, **look)
    axes.axvline(1.0, color=COLOURS["base"], linestyle="--", label=NAMES["base"])
    axes.set_yticks(range(len(cells)), [_label(cell) for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("time of forward and backward / frozen base (logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure


def _label(cell: dict[str, Any]) -> str:
    return f"{'→'.join(map(str, cell['features']))}, {cell['tokens']}, {cell['dtype']}, dropout {cell['dropout']:g}"


def _step(result: Result) -> Figure:
    """Tokens per second and peak memory of every side, in the setting in which all of them took part."""
    setting = result["settings"][0]
    sides = list(setting["tokens_per_second"])
    figure, (speed, memory) = _new(2, height=1.2 + 0.35 * len(sides))
    _lie(speed, sides, setting["tokens_per_second"].values())
    speed.set_xlabel(f"tokens/s, dropout {setting['dropout']:g}")
    speed.set_yticks(range(len(sides)), [NAMES[side] for side in sides], fontsize=8)
    _lie(memory, sides, [setting["peak_bytes"][side] / 2**20 for side in sides])
    memory.set_xlabel("peak memory of a step, MiB")
    memory.set_yticks([])
    return figure


def _lie(axes: Axes, sides: list[str], values: Iterable[float]) -> None:
    rows = axes.barh(range(len(sides)), list(values), color=[COLOURS[side] for side in sides], edgecolor="black")
    axes.bar_label(rows, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.invert_yaxis()
