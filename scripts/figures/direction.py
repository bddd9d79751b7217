"""The minimum of the balancing constraint: which group of experts gets the gate weight of which samples.

There is no model and no LM loss: one sample of each task type, one free logit for each sample and expert, and the
functions of `loramoe.balance` that training uses. The tables compare the minimum with the closed form.

    python scripts/figures/direction.py            # rewrites the tables of docs/method.md, and the figure
    python scripts/figures/direction.py --check    # writes nothing; exits with 1 if the tables are out of date
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from loramoe.balance.constraint import (
    BLC_IMPORTANCES,
    BLC_TARGETS,
    BlcImportance,
    BlcTarget,
    coefficient,
    localized_balance,
    match_types,
    rows_as_samples,
)
from scripts.blocks import main

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs/figures/direction.png"

TWO_TYPES, THREE_TYPES = (1, 1, 0, 0), (2, 2, 1, 1, 0, 0)
ALPHA = 0.1  # blc_alpha in the tables: the paper's
RATIOS = (1, 2, 3, 4, 8, 16)  # tokens of a task for each token of a question
LINES = {"match": ("#0072B2", "o", "full"), "paper": ("#D55E00", "s", "none")}  # Okabe and Ito's blue and vermilion


def minimise(
    expert_types: Sequence[int],
    blc_alpha: float,
    blc_target: BlcTarget,
    blc_importance: BlcImportance = "mean",
    lengths: Sequence[int] | None = None,
) -> list[float]:
    """Minimise the constraint over free gates, with one sample of each task type.

    Args:
        expert_types: Type of each of the E experts, groups of equal size.
        blc_alpha: a in 1 ± a.
        blc_target: Direction of the constraint.
        blc_importance: "mean" or "sum" of the gates over the tokens of a sample.
        lengths: Tokens of each sample, the highest type first; all tokens of a sample have equal gates. Default: 1.

    Returns:
        The share of its gate weight that each sample, at the minimum, gives to the experts of its own type.
    """
    task_types = torch.tensor(sorted(set(expert_types), reverse=True))
    tokens_M = torch.tensor(lengths or [1] * len(task_types))
    membership = rows_as_samples(torch.arange(int(tokens_M.max())) < tokens_M.unsqueeze(-1))
    coefficient_ME = coefficient(task_types, expert_types, blc_alpha, blc_target)
    generator = torch.Generator().manual_seed(0)
    logits_ME = torch.randn(coefficient_ME.shape, generator=generator).double().requires_grad_(True)

    def constraint() -> Tensor:
        gates_MSE = logits_ME.softmax(-1).unsqueeze(1).expand(-1, membership.shape[1], -1)
        return localized_balance(membership.importance(gates_MSE, blc_importance), coefficient_ME)

    _descend(constraint, logits_ME)
    own_M = (logits_ME.detach().softmax(-1) * match_types(task_types, expert_types)).sum(-1)
    return own_M.tolist()


def _descend(constraint: Callable[[], Tensor], logits: Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = constraint()
        loss.backward()
        return loss

    optimizer.step(closure)


def closed_form(groups: int, blc_alpha: float, blc_target: BlcTarget) -> float:
    """Return the share of a sample's own group where Z is even: Q ∝ I under "match", Q ∝ 1 / I under "paper".

    Args:
        groups: Number of groups of experts, all of one size.
        blc_alpha: a in 1 ± a.
        blc_target: Direction of the constraint.
    """
    # 1 / (1 + a) and 1 / (1 − a) have the ratio of 1 − a and 1 + a.
    own, other = (1 + blc_alpha, 1 - blc_alpha) if blc_target == "match" else (1 - blc_alpha, 1 + blc_alpha)
    return own / (own + (groups - 1) * other)


def split_table() -> str:
    """Return the table for samples of one length: the gates of each group at the minimum."""
    rows = [
        "| types | E | a | `blc_target` | gate, own type | gate, other type | share, own group | closed form |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for types, target in itertools.product((TWO_TYPES, THREE_TYPES), BLC_TARGETS):
        groups = len(set(types))
        size = len(types) // groups
        own = _common(minimise(types, ALPHA, target))
        gates = f"{own / size:.4f} | {(1 - own) / (len(types) - size):.4f}"
        expected = closed_form(groups, ALPHA, target)
        rows.append(f'| {groups} | {len(types)} | {ALPHA} | "{target}" | {gates} | {own:.4f} | {expected:.4f} |')
    return "\n".join(rows)


def _common(shares: Sequence[float]) -> float:
    """Return the value that all samples share; fails if they differ."""
    torch.testing.assert_close(torch.tensor(shares), torch.full((len(shares),), shares[0]), rtol=0, atol=1e-5)
    return shares[0]


def length_table() -> str:
    """Return the table for samples of different lengths: a short question of type 1, a longer task of type 0."""
    rows = [
        '| tokens, question : task | "mean": question | task | "sum": question | task |',
        "|---|---|---|---|---|",
    ]
    for ratio in RATIOS:
        found = [minimise(TWO_TYPES, ALPHA, "match", importance, (1, ratio)) for importance in BLC_IMPORTANCES]
        cells = " | ".join(f"{share:.3f}" for shares in found for share in shares)
        rows.append(f"| 1:{ratio} | {cells} |")
    return "\n".join(rows)


def blocks() -> dict[tuple[str, str], str]:
    """The tables by page and block."""
    return {("method.md", "split"): split_table(), ("method.md", "lengths"): length_table()}


def draw(file: Path) -> None:
    """Draw the share of a sample's own group against blc_alpha: lines are the closed form, markers the minimiser's.

    Args:
        file: The PNG to write.
    """
    with plt.rc_context({"font.size": 11}):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.7), sharey=True, layout="constrained")
        for panel, types in zip(axes, (TWO_TYPES, THREE_TYPES), strict=True):
            _draw_shares(panel, types)
        axes[0].set_ylabel("share of the gate weight\nfor the sample's own group")
        axes[0].legend(loc="upper left", frameon=False, fontsize=10)
        figure.suptitle('With "match" a sample gives its own group more weight, with "paper" less', fontsize=12)
        figure.savefig(file, dpi=160, metadata={"Software": None})
        plt.close(figure)


def _draw_shares(panel: Axes, types: tuple[int, ...]) -> None:
    groups = len(set(types))
    lines, marks = torch.linspace(0, 0.95, 96).tolist(), torch.linspace(0.1, 0.9, 9).tolist()
    for target in BLC_TARGETS:
        colour, marker, filled = LINES[target]
        look = {"color": colour, "marker": marker, "fillstyle": filled}
        found = [_common(minimise(types, a, target)) for a in marks]
        panel.plot(lines, [closed_form(groups, a, target) for a in lines], color=colour)
        panel.plot(marks, found, linestyle="", **look)
        panel.plot([], [], label=f'blc_target="{target}"', **look)
    panel.axhline(1 / groups, color="0.4", linewidth=1, linestyle="--", zorder=0, label="even share")
    panel.set(title=f"{groups} task types, {len(types)} experts", xlabel="blc_alpha", xlim=(0, 0.95), ylim=(0, 1))
    panel.title.set_fontsize(11)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        draw(FIGURE)
    sys.exit(main(blocks(), __doc__ or ""))
