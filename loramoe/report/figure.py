"""The figure of a run: which expert, and which group of experts, served which task type, layer by layer.

Cividis grows evenly in lightness, and lines differ in marker and dash as well as in colour: the figure reads the same
to colour-blind eyes and in black and white.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramoe.report.shares import Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANING = {
    "paper": "the matching group is pushed to less gate weight",
    "match": "the matching group is pushed to more gate weight",
}
_STYLES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")]


def draw_shares(shares: Shares, file: Path, blc_target: str, blc_weight: float) -> None:
    """Draws one heat map per task type (layers × experts) and the groups' shares layer by layer.

    Args:
        shares: What the experts did.
        file: The PNG to write.
        blc_target: The run's direction of the constraint, "paper" or "match", for the title.
        blc_weight: The run's weight of the constraint, for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    layers, gate_TNE = shares.by_layer()
    panels = len(shares.task_types) + 1
    height = min(12.0, 3.0 + 0.22 * len(layers))
    figure = Figure(figsize=(4.2 * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    top = gate_TNE.max().item()
    for t, task_type in enumerate(shares.task_types):
        image = _draw_heat(axes[t], gate_TNE[t].numpy(), layers, shares, top)
        axes[t].set_title(f"rows of task type {task_type}: mean gate")
    figure.colorbar(image, ax=list(axes[:-1]), shrink=0.8)
    _draw_groups(axes[-1], shares, layers, shares.group_share(gate_TNE).numpy())
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=7, ncols=2, loc="outside lower right")
    figure.suptitle(_title(blc_target, blc_weight))
    figure.savefig(file, dpi=150)


def _title(blc_target: str, blc_weight: float) -> str:
    if blc_weight == 0:
        return "Which expert served which task type (no balancing constraint)"
    return f'Which expert served which task type (blc_target="{blc_target}": {MEANING[blc_target]})'


def _draw_heat(axes: Axes, gate_NE: Any, layers: list[str], shares: Shares, top: float) -> Any:
    image = axes.imshow(gate_NE, aspect="auto", cmap="cividis", vmin=0.0, vmax=top, interpolation="nearest")
    types = shares.expert_types
    for e in range(1, len(types)):
        if types[e] != types[e - 1]:
            axes.axvline(e - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(types)), [f"{e}\ntype {kind}" for e, kind in enumerate(types)], fontsize=7)
    axes.set_xlabel("expert")
    _label_layers(axes, layers)
    return image


def _draw_groups(axes: Axes, shares: Shares, layers: list[str], share_TNG: Any) -> None:
    for t, task_type in enumerate(shares.task_types):
        for g, group in enumerate(shares.groups):
            dash, marker = _STYLES[t % len(_STYLES)][0], _STYLES[g % len(_STYLES)][1]
            label = f"rows of type {task_type} → experts of type {group}"
            axes.plot(share_TNG[t, :, g], range(len(layers)), dash, marker=marker, markersize=4, label=label)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    _label_layers(axes, layers)
    axes.set_xlabel("share of the gate weight")
    axes.set_title("share of each group of experts")
    axes.grid(alpha=0.3)


def _label_layers(axes: Axes, layers: list[str]) -> None:
    step = max(1, len(layers) // 16)
    axes.set_yticks(range(0, len(layers), step), layers[::step], fontsize=7)
    axes.set_ylabel("layer")
