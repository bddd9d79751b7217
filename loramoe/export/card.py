"""The model card of an export: that it is an approximation, of what, how good, and when to leave it alone."""

from __future__ import annotations

import json
from typing import Any

from loramoe.export.distance import ANSWERS, BASE, EXPORT
from loramoe.export.report import REPORT, ExportReport, answer_table, divergence_table, linear_table

_CARD = """---
{front}
---

# A plain LoRA that approximates a LoRAMoE adapter

**This is an approximation of {source}, not the trained adapter.** A LoRAMoE adapter mixes {experts} experts by a router
that looks at every token. Here each linear's gates are replaced by their mean over {tokens} calibration tokens, which
makes of it a plain LoRA of rank {rank}. It is for tools that know only LoRA; where LoRAMoE can run, use the adapter.

Do not use it to report what LoRAMoE achieves, to go on training, or where the distance below is more than you can bear.

## How far it is from the adapter

Measured on {rows}. KL is that of the adapter's next-token distributions from the export's and, as a yardstick, from the
base model's, in nats per token. **{summary}** An answer is accurate where greedy decoding would say all of it.

{divergence}

{answers}

## Linear by linear

Spread is the coefficient of variation of the gates over the calibration tokens: how much they depend on the input. The
relative error is that of what the experts add, given the same input.

{figure}{linears}

All numbers, and the mean gates: `{report}`. Made by LoRAMoE {version}; the method: arXiv 2312.09979.
"""


def model_card(report: ExportReport, figure: str | None = None) -> str:
    """Writes the README.md of an export.

    Args:
        report: What was measured.
        figure: Name of the figure beside it, if there is one.

    Returns:
        The card, in Markdown.
    """
    front: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "loramoe", "approximation"]}
    if report.base_on_hub:
        front["base_model"] = report.base_model
    return _CARD.format(
        front="\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        source=report.source,
        experts=report.experts,
        tokens=f"{report.calibration_tokens:,}",
        rank=report.rank,
        rows="held-out rows" if report.held_out else "the calibration rows themselves, which flatters it",
        summary=_summary(report),
        divergence=divergence_table(report),
        answers=answer_table(report),
        figure=f"![Spread and relative error, layer by layer]({figure})\n\n" if figure else "",
        linears=linear_table(report),
        report=REPORT,
        version=report.loramoe,
    )


def _summary(report: ExportReport) -> str:
    divergence = report.groups[ANSWERS].divergence
    if report.lost is None:
        return "The adapter says what the base model says."
    return (
        f"Over the answers it is {divergence[EXPORT].mean:.4g}, {report.lost:.1%} of the base model's "
        f"{divergence[BASE].mean:.4g}."
    )
