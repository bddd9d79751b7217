"""The direction of the balancing constraint by numbers: minimise it on free gates, and see which experts get what.

There is no model here and no language-model loss: one sample of each task type, one free logit for each of its experts,
and `loramoe.balance` as training uses it. What the minimiser finds stands beside the closed form, Q ∝ 1/I for
`blc_target="paper"` and Q ∝ I for `blc_target="match"`.

    python scripts/figures/direction.py      # rewrites the tables of docs/direction.md, and docs/figures/direction.png
"""

from __future__ import annotations

import argparse
import itertools
import re
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
from loramoe.balance import BLC_TARGETS, BlcTarget, coefficient, importance, localized_balance, match_types

ROOT = Path(__file__).resolve().parents[2]
PAGE, FIGURE = ROOT / "docs/direction.md", ROOT / "docs/figures/direction.png"

TWO_TYPES, THREE_TYPES = (1, 1, 0, 0), (2, 2, 1, 1, 0, 0)
STYLES = {"paper": ("#0072B2", "-", "o"), "match": ("#D55E00", "--", "s")}  # Okabe and Ito's blue and vermilion


def minimise(
    expert_types: Sequence[int], blc_alpha: float, blc_target: BlcTarget, lengths: Sequence[int] | None = None
) -> tuple[list[float], float]:
    """Minimise the constraint on free gates, one sample for each task type.

    Args:
        expert_types: Type of each of the E experts, groups of equal size.
        blc_alpha: a in 1 ± a.
        blc_target: Direction of the constraint.
        lengths: Tokens of each sample, the highest type first; all tokens of a sample have one gate. Default: 1 each.

    Returns:
        At the minimum, the share of the gate weight that each sample gives to the group of its own type, and the
        constraint.
    """
    task_types = torch.tensor(sorted(set(expert_types), reverse=True))
    tokens_M = torch.tensor(lengths or [1] * len(task_types))
    mask_MS = torch.arange(int(tokens_M.max())) < tokens_M.unsqueeze(-1)
    I_ME = coefficient(task_types, expert_types, blc_alpha, blc_target)
    logits_ME = torch.randn(I_ME.shape, generator=torch.Generator().manual_seed(0)).double().requires_grad_(True)

    def constraint() -> Tensor:
        gates_MSE = logits_ME.softmax(-1).unsqueeze(1).expand(-1, mask_MS.shape[1], -1)
        return localized_balance(importance(gates_MSE, mask_MS), I_ME)

    _descend(constraint, logits_ME)
    own_M = (logits_ME.detach().softmax(-1) * match_types(task_types, expert_types)).sum(-1)
    return own_M.tolist(), constraint().item()


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
    """Share of the matching group where I ∘ Q is equal: Q ∝ 1/I ("paper"), or, dividing by I instead, Q ∝ I ("match").

    Args:
        groups: Number of groups of experts, all of one size.
        blc_alpha: a in 1 ± a.
        blc_target: Direction of the constraint.

    Returns:
        The share, for samples of equal length.
    """
    # For "paper", 1/(1 + a) : 1/(1 − a) is the same proportion as 1 − a : 1 + a.
    matching, other = (1 - blc_alpha, 1 + blc_alpha) if blc_target == "paper" else (1 + blc_alpha, 1 - blc_alpha)
    return matching / (matching + (groups - 1) * other)


def split_table() -> str:
    """Samples of one length: what a matching expert and any other are left with."""
    rows = [
        "| task types | E | `blc_alpha` | `blc_target` | gate of a matching expert | of any other expert "
        "| share of the matching group | closed form |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for types, alpha, target in itertools.product((TWO_TYPES, THREE_TYPES), (0.1, 0.5), BLC_TARGETS):
        groups = len(set(types))
        size = len(types) // groups
        own_M, _ = minimise(types, alpha, target)
        own = _common(own_M)
        gates = f"{own / size:.4f} | {(1 - own) / (len(types) - size):.4f}"
        rows.append(
            f'| {groups} | {len(types)} | {alpha} | "{target}" | {gates} | {own:.4f} '
            f"| {closed_form(groups, alpha, target):.4f} |"
        )
    return "\n".join(rows) + "\n"


def _common(shares: Sequence[float]) -> float:
    """The value that all samples share; fails if they differ."""
    torch.testing.assert_close(torch.tensor(shares), torch.full((len(shares),), shares[0]), rtol=0, atol=1e-5)
    return shares[0]


def length_table() -> str:
    """Samples of different lengths: a short question of type 1 beside a longer task of type 0."""
    rows = [
        '| tokens, question : task | "paper": question | task | "match": question | task | constraint that is left |',
        "|---|---|---|---|---|---|",
    ]
    for ratio in (1, 2, 3, 4, 8, 16):
        (paper, left), (match, _) = (minimise(TWO_TYPES, 0.1, target, (1, ratio)) for target in BLC_TARGETS)
        shares = " | ".join(f"{share:.3f}" for share in (*paper, *match))
        rows.append(f"| 1 : {ratio} | {shares} | {left:.3f} |")
    return "\n".join(rows) + "\n"


def fill(page: str) -> str:
    """The page with its tables made anew, between their markers.

    Args:
        page: The page's Markdown.

    Returns:
        The same, with what the functions above say today.
    """
    for name, table in (("split", split_table()), ("lengths", length_table())):
        between = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        page, count = between.subn(lambda found, table=table: found[1] + table + found[2], page)
        if count != 1:
            raise ValueError(f"expected one pair of markers <!-- {name}:begin/end --> in the page; found {count}.")
    return page


def draw(file: Path) -> None:
    """Draw the matching group's share against blc_alpha: the closed form as lines, what was minimised as markers.

    Args:
        file: The PNG to write.
    """
    with plt.rc_context({"font.size": 11}):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
        for panel, types in zip(axes, (TWO_TYPES, THREE_TYPES), strict=True):
            _draw_shares(panel, types)
        axes[0].set_ylabel("share of the gate weight\nthat goes to the matching group")
        axes[0].legend(loc="upper left", frameon=False)
        figure.savefig(file, dpi=160, metadata={"Software": None})
        plt.close(figure)


def _draw_shares(panel: Axes, types: tuple[int, ...]) -> None:
    groups = len(set(types))
    lines, marks = torch.linspace(0, 0.95, 96).tolist(), torch.linspace(0.1, 0.9, 9).tolist()
    for target in BLC_TARGETS:
        colour, dash, marker = STYLES[target]
        panel.plot(lines, [closed_form(groups, a, target) for a in lines], dash, color=colour)
        panel.plot(marks, [_common(minimise(types, a, target)[0]) for a in marks], marker, color=colour)
        panel.plot([], [], dash, marker=marker, color=colour, label=f'blc_target="{target}"')
    panel.axhline(1 / groups, color="0.6", linewidth=1, linestyle=":", zorder=0)
    panel.annotate("even", (0.95, 1 / groups), ha="right", va="bottom", color="0.35")
    panel.set(title=f"{groups} task types, {len(types)} experts", xlabel="blc_alpha", xlim=(0, 1), ylim=(0, 1))
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Rewrite the page's tables and the figure."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw(FIGURE)
    print(f"wrote {PAGE.relative_to(ROOT)} and {FIGURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
