"""Writes the figure and the generated parts of docs/results.md and of both READMEs from the committed results.

python -m experiments.page            # write
python -m experiments.page --check    # fail if a part differs from what the results give
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from experiments.analysis import Interval, contrast, contrast_over_items, table
from experiments.real import HEALING, Real
from experiments.runs import METHODS, RESULTS, ROOT, Plan, kept_rates, load_results, runs_of
from experiments.tiny import Tiny
from scripts import blocks as pages

FIGURE: Final = ROOT / "docs" / "figures" / "results.png"
PLANS: Final[Mapping[str, Plan]] = {"tiny": Tiny.plan, "real": Real.plan}
LINK: Final = "All methods, intervals and limits: [docs/results.md](docs/results.md)."
CHINESE_LINK: Final = "全部方法、区间与局限：[docs/results.md](docs/results.md)。"
IMAGE: Final = "![Knowledge lost against what is learnt](figures/results.png)"
Results = Sequence[Mapping[str, Any]]
COLUMNS: Final = {
    "learning": ("learnt, nats", "{:.3f}"),
    "downstream_accuracy": ("downstream exact", "{:.1%}"),
    "gym_exact": ("gym exact", "{:.1%}"),
    "recall": ("knowledge right", "{:.1%}"),
    "lost": ("right items lost", "{:.1%}"),
    "english_loss": ("English loss", "{:.3f}"),
    "kl_knowledge": ("KL on knowledge", "{:.3f}"),
    "seeds": ("seeds", "{:.0f}"),
}

VARIANTS: Final = (  # of LoRAMoE, with the names that README.md and README_zh.md give them
    ("equal_gates", "the same experts with equal, frozen gates", "门控相等且冻结的同样专家"),
    ("no_constraint", "LoRAMoE without the constraint", "没有约束的 LoRAMoE"),
)


def blocks(results: Mapping[str, Results]) -> dict[tuple[str, str], str]:
    """Write the generated parts of the pages.

    Args:
        results: Results by scale.

    Returns:
        Text by page, relative to docs/, and name of the block.
    """
    primary = {name: contrast(PLANS[name], results[name], "loramoe", "lora") for name in PLANS}
    return {
        ("results.md", "results:answer"): f"**{answer(primary)}**",
        ("results.md", "results:state"): "\n".join(f"- {state(name, results[name])}" for name in PLANS),
        ("results.md", "results:figure"): IMAGE if any(primary.values()) else "The figure needs two seeds.",
        ("results.md", "results:table"): "\n\n".join(_table(name, results[name]) for name in PLANS if primary[name]),
        ("results.md", "results:findings"): "\n".join(f"- {line}" for line in findings(results)),
        ("../README.md", "results"): " ".join((answer(primary), *_summary(results), LINK)),
        ("../README_zh.md", "results"): "".join((*_chinese(primary, results), CHINESE_LINK)),
    }


def answer(primary: Mapping[str, Interval | None]) -> str:
    """Answer the registered question in one sentence for each scale."""
    sentences = [
        f"On {where}, {_compared('LoRAMoE', 'LoRA', primary[name])}"
        if primary[name]
        else f"On {where} the comparison is not yet run."
        for name, where in (("tiny", "the invented world"), ("real", "real text"))
    ]
    return " ".join(sentences)


def _compared(method: str, reference: str, difference: Interval | None) -> str:
    if difference is None:
        return f"{method} against {reference}: not yet run."
    amount = f"{difference} nats at equal learning, {difference.n} seeds"
    if not difference.significant:
        return (
            f"{method} does not beat {reference}: their losses of knowledge are not significantly different ({amount})."
        )
    less = "less" if difference.high < 0 else "more"
    return f"{method} loses {less} knowledge than {reference} ({amount})."


def state(name: str, results: Results) -> str:
    """Report how much of a scale's grid has been run."""
    if not results:
        return f"{name}: not yet run."
    plan, runs = PLANS[name], runs_of(PLANS[name], results)
    commits, processors = (
        ", ".join(sorted({result["made_with"][key] for result in results})) for key in ("commit", "processor")
    )
    if {run.seed for run in runs} == {0}:
        stage = f"of the {len(runs)} runs that choose the rates"
    else:
        rates = (
            f"{kind} {low:g} and {high:g}" for kind in plan.rates for low, high in [kept_rates(plan, results, kind)]
        )
        stage = f"of {len(runs)} runs (kept rates: {'; '.join(rates)})"
    file = RESULTS / name / HEALING
    healed = f" SHA-256 of the healed weights: `{json.loads(file.read_text())['sha256']}`." if file.is_file() else ""
    return f"{name}: {len(results)} {stage}, made by {commits} on {processors}.{healed}"


def contrast_known(name: str, results: Results) -> bool:
    """Whether a scale has results for at least two seeds of LoRAMoE and LoRA."""
    return contrast(PLANS[name], results, "loramoe", "lora") is not None


def findings(results: Mapping[str, Results]) -> list[str]:
    """Report what the registered comparisons show, for each scale with results."""
    sentences = []
    for name, plan in PLANS.items():
        found = results[name]
        if not contrast_known(name, found):
            sentences.append(f"**{name}: not yet run.**")
            continue

        def against(reference: str, method: str = "loramoe", plan: Plan = plan, found: Results = found) -> str:
            labels = METHODS[method].label, METHODS[reference].label
            difference, at_kl = (contrast(plan, found, method, reference, axis) for axis in ("learning", "kl"))
            return _compared(*labels, difference) + (f" At equal KL: {at_kl}." if at_kl else "")

        sentences += [
            f"**{name}, the method.** {against('lora')}{_items(name, found)}",
            f"**{name}, the routing.** {against('equal_gates')}",
            f"**{name}, the constraint.** {against('no_constraint')} {_shares(plan, found)}",
            f"**{name}, full fine-tuning.** {against('full')} {_interpolated(found)}",
        ]
        if "strong_constraint" in plan.variants:
            sentences.append(f"**{name}, a strong constraint.** {against('loramoe', 'strong_constraint')}")
    return sentences


def _items(name: str, found: Results) -> str:
    if name != "real":
        return ""
    return f" Over items: {contrast_over_items(PLANS[name], found, 'loramoe', 'lora')}."


def _shares(plan: Plan, found: Results) -> str:
    """Gate weight of the experts of a sample's own type, at the higher kept rate."""
    rate, shares = kept_rates(plan, found, "adapter")[-1], []
    for name in ("no_constraint", "loramoe", "strong_constraint"):
        runs = [r["knowledge_group_by_type"] for r in found if (r["method"], r["rate"]) == (name, rate)]
        own = [(1 - downstream + knowledge) / 2 for downstream, knowledge in runs]
        shares += [f"{sum(own) / len(own):.1%} ({METHODS[name].label})"] if own else []
    return f"Gate weight of the experts of a sample's own type: {', '.join(shares)}."


def _interpolated(found: Results) -> str:
    """What half of full fine-tuning's update keeps of learning and of loss."""
    kept = []
    for result in (r for r in found if r["method"] == "full"):
        start, end = result["checkpoints"][0], result["checkpoints"][-1]
        half = next(point for point in result["interpolated"] if point["share"] == 0.5)
        learnt, lost = (
            (half[field] - start[field]) / (end[field] - start[field])
            for field in ("downstream_loss", "knowledge_loss")
        )
        kept.append((learnt, lost))
    learnt, lost = (sum(values) / len(kept) for values in zip(*kept, strict=True))
    return f"Half of its update keeps {learnt:.0%} of what it learnt and {lost:.0%} of what it lost."


def _table(name: str, results: Results) -> str:
    frame = table(PLANS[name], results)
    columns = [column for column in COLUMNS if column in frame]
    head = ["method", "rate", *(COLUMNS[column][0] for column in columns)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for _, row in frame.iterrows():
        cells = [METHODS[row["method"]].label, f"{row['rate']:g}", *(COLUMNS[c][1].format(row[c]) for c in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return f"The {name} scale, means over seeds at the last checkpoint, all items:\n\n" + "\n".join(lines)


def _summary(results: Mapping[str, Results]) -> list[str]:
    known = ((contrast(PLANS["tiny"], results["tiny"], "loramoe", name), label) for name, label, _ in VARIANTS)
    return [_compared("LoRAMoE", label, difference) for difference, label in known if difference]


def _chinese(primary: Mapping[str, Interval | None], results: Mapping[str, Results]) -> list[str]:
    compared = [("在虚构世界上", primary["tiny"], "LoRA"), ("在真实文本上", primary["real"], "LoRA")]
    for name, _, label in VARIANTS:
        if difference := contrast(PLANS["tiny"], results["tiny"], "loramoe", name):
            compared.append(("在虚构世界上", difference, label))
    return [
        f"{place}，{_chinese_compared(reference, difference)}" if difference else f"{place}的比较尚未运行。"
        for place, difference, reference in compared
    ]


def _chinese_compared(reference: str, difference: Interval) -> str:
    amount = f"学到同样多时 {difference} nats，{difference.n} 个随机种子"
    if not difference.significant:
        return f"LoRAMoE 并未胜过 {reference}：知识损失无显著差异（{amount}）。"
    return f"LoRAMoE 损失的知识比 {reference} {'少' if difference.high < 0 else '多'}（{amount}）。"


def _title(name: str, results: Results) -> str:
    """The answer of one scale without its numbers."""
    sentences = _compared("LoRAMoE", "LoRA", contrast(PLANS[name], results, "loramoe", "lora"))
    return f"{name.capitalize()} scale: {sentences.partition(' (')[0].partition(':')[0]}"


def main() -> int:
    """Write or check."""
    results = {name: load_results(RESULTS / name) for name in PLANS}
    if "--check" not in sys.argv:
        known = {name: (plan, results[name]) for name, plan in PLANS.items() if contrast_known(name, results[name])}
        if known:
            from experiments.figure import draw

            draw(known, {name: _title(name, results[name]) for name in known}, FIGURE)
    return pages.main(blocks(results), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
