"""What a run leaves behind, and the words in which it says so."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

from loramoe.report import draw_shares, write_shares
from loramoe.report.shares import Shares
from loramoe.report.write import PAGE
from loramoe.training.arguments import Arguments
from loramoe.training.checkpoint import ADAPTER, FIGURE, PAGES, SHARES
from loramoe.tuner.config import LoraMoeConfig

logger = logging.getLogger(__name__)

_NAMES = {"loss": "evaluation loss", "perplexity": "perplexity", "recall": "recall"}


def before_and_after(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Finds the first and the last value of what was measured."""
    found: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    for entry in history:
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name == "recall" or (name != key and re.search(r"(^|_)(loss|perplexity)(/|$)", name)):
                found["after"][name] = value
                if entry["step"] == 0:
                    found["before"].setdefault(name, value)
    return found


def write_shares_report(shares: Shares, output_dir: Path, config: LoraMoeConfig) -> None:
    """Writes the JSON of the experts' shares and its figure; a run whose figure cannot be drawn is finished too."""
    try:
        write_shares(shares, output_dir / SHARES, blc_target=config.blc_target, blc_weight=config.blc_weight)
        draw_shares(shares, output_dir / FIGURE, config.blc_target, config.blc_weight)
    except Exception as error:  # of a drawing library, too
        (output_dir / FIGURE).unlink(missing_ok=True)  # it may be half a figure
        logger.warning("no figure of the experts' shares: %s: %s", type(error).__name__, error)


def final_summary(arguments: Arguments, metrics: dict[str, dict[str, float]], shares: Shares | None = None) -> str:
    """The summary that ends a run."""
    model, data, training = arguments
    output_dir = Path(training.output_dir)
    adapter = output_dir / ADAPTER
    lines = ["", "Finished.", f"  adapter   {adapter}"]
    if (output_dir / FIGURE).is_file():
        lines.append(f"  figure    {output_dir / FIGURE}   which expert served which task type")
    if (output_dir / PAGES / PAGE).is_file():
        lines.append(f"  page      {output_dir / PAGES / PAGE}   what each expert does")
    lines += [f"  {line}" for line in table(metrics)]
    if shares is not None and set(shares.task_types) <= set(shares.groups):
        lines.append(f"  gate weight of the experts of a sample's own type: {_own_shares(shares)}")
    lines += [
        "",
        "Load it in Python (from this folder, or after pip install):",
        *_python(model.base_model, adapter),
    ]
    lines += ["", "Generate:", f"  {_generate(data, adapter)}"]
    lines += ["", "Evaluate:", f"  {_evaluate(data, model.base_model, adapter)}", ""]
    return "\n".join(lines)


def table(metrics: dict[str, dict[str, float]]) -> list[str]:
    """What was measured, a line each."""
    before, after = metrics["before"], metrics["after"]
    return [
        f"{_label(name)}: {f'{before[name]:.4g} before, ' if name in before else ''}{value:.4g} after"
        for name, value in after.items()
    ]


def _label(name: str) -> str:
    """`loss` is the evaluation loss; `loss/knowledge` and `held_out_loss` are parts of it."""
    kind, slash, part = name.partition("/")
    label = _NAMES.get(kind, kind.replace("_", " "))
    return f"{label} ({part})" if slash else label


def _own_shares(shares: Shares) -> str:
    share_TG = shares.group_share().mean(dim=1)
    own = {t: share_TG[row, shares.groups.index(t)].item() for row, t in enumerate(shares.task_types)}
    return ", ".join(f"{100 * share:.1f} % (type {task_type})" for task_type, share in own.items())


def _python(base: str, adapter: Path) -> list[str]:
    return [
        "  import loramoe",
        "  from peft import PeftModel",
        "  from transformers import AutoModelForCausalLM",
        f'  model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{adapter}")',
    ]


def _interpreter() -> str:
    """The running Python as the user would type it: from the current folder, if it lies below that."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here) if python.is_relative_to(here) else python)


def _generate(data: Any, adapter: Path) -> str:
    return f'{_interpreter()} -m loramoe.generate --adapter {adapter} --prompt "…"'


def _evaluate(data: Any, base: str, adapter: Path) -> str:
    if data.recall_file:
        return f"{_interpreter()} -m loramoe.evaluate --adapter {adapter} --file {data.recall_file}"
    return (
        f"PYTHONPATH=. {_interpreter()} -m lm_eval --model hf --model_args pretrained={base},peft={adapter} --tasks …"
    )
