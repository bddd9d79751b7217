"""What a run leaves behind, and the words in which it says so."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

from loramoe.analysis.report import FIGURES, PAGE, ReportInfo, write_report
from loramoe.analysis.target import conclude
from loramoe.training.arguments import Arguments
from loramoe.training.callbacks import log_figures
from loramoe.training.checkpoint import ADAPTER, PAGES
from loramoe.training.samples import type_names
from loramoe.utils import public_name

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


def report_experts(trainer: Any, arguments: Arguments, folder: Path) -> str:
    """Writes the report on the experts, and sends its figures to the trackers; a run whose report fails is finished.

    Returns:
        What the report concludes; empty without an evaluation, or with a single expert.
    """
    stats, config = trainer.eval_routing, trainer.model.peft_config[ADAPTER]
    if stats is None:
        return ""
    model_args, data_args, args = arguments
    data = public_name(data_args.validation_file) if data_args.validation_file else "the validation samples"
    names = type_names(config, data_args.config().type_names)
    try:
        if args.experts_page:
            write_report(stats, ReportInfo(ADAPTER, public_name(model_args.base_model), data, config, names), folder)
            log_figures(trainer, [folder / name for name in FIGURES])
    except Exception as error:  # of a drawing library, too
        logger.warning("no report on the experts: %s: %s; loramoe report can write it.", type(error).__name__, error)
    return conclude(stats, config, names)


def final_summary(arguments: Arguments, metrics: dict[str, dict[str, float]], conclusion: str = "") -> str:
    """The summary that ends a run."""
    model, data, training = arguments
    output_dir = Path(training.output_dir)
    adapter = output_dir / ADAPTER
    lines = ["", "Finished.", f"  adapter   {adapter}"]
    if (output_dir / PAGES / PAGE).is_file():
        lines.append(f"  report    {output_dir / PAGES / PAGE}   which expert serves which task type")
    lines += [f"  {line}" for line in table(metrics)]
    if conclusion:
        lines.append(f"  experts   {conclusion}")
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
        return f"{_interpreter()} -m loramoe.recall --adapter {adapter} --file {data.recall_file}"
    return (
        f"PYTHONPATH=. {_interpreter()} -m lm_eval --model hf --model_args pretrained={base},peft={adapter} --tasks …"
    )
