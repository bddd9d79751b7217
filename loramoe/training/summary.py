"""What a run leaves behind, and the words in which it says so."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from loramoe.report import draw_shares, write_shares
from loramoe.report.shares import Shares
from loramoe.report.write import PAGE
from loramoe.training.arguments import Arguments
from loramoe.training.checkpoint import ADAPTER, FIGURE, PAGES, SHARES
from loramoe.utils import write_json

logger = logging.getLogger(__name__)

_NAMES = {"loss": "evaluation loss", "perplexity": "perplexity", "recall": "recall"}


def before_and_after(history: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Finds the first and the last value of what was measured.

    Args:
        history: The Trainer's log; it outlives an interruption.

    Returns:
        `before` (of step 0 only) and `after`, each with those of `loss`, `perplexity` and `recall` that were measured.
    """
    keys = {"loss": "eval_loss", "perplexity": "eval_perplexity", "recall": "recall"}
    measured = {name: [entry for entry in history if key in entry] for name, key in keys.items()}
    before = {n: entries[0][keys[n]] for n, entries in measured.items() if entries and entries[0]["step"] == 0}
    after = {n: entries[-1][keys[n]] for n, entries in measured.items() if entries}
    return {"before": before, "after": after}


def save_results(output_dir: Path, split: str, metrics: dict[str, float], combined: bool = True) -> None:
    """Writes `SPLIT_results.json`, and with `all_results.json` what it adds to it, under the Trainer's names.

    Args:
        output_dir: Folder of the run.
        split: Of which rows they are: `"train"` or `"eval"`.
        metrics: What was measured.
        combined: Whether `all_results.json` is written too.
    """
    write_json(output_dir / f"{split}_results.json", metrics)
    if not combined:
        return
    file = output_dir / "all_results.json"
    write_json(file, {**_earlier_results(file), **metrics})


def _earlier_results(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # no reason to lose what was trained
        logger.warning("%s was damaged, and is written anew; what was in it is in the files of each split.", file)
        return {}


def write_report(shares: Shares, output_dir: Path, blc_target: str, blc_weight: float) -> None:
    """Writes the JSON of the experts' shares, and the figure of it; a run whose figure cannot be drawn is finished too.

    Args:
        shares: What the experts did.
        output_dir: Folder of the run.
        blc_target: Direction of the constraint.
        blc_weight: Weight of the constraint.
    """
    try:
        write_shares(shares, output_dir / SHARES, blc_target=blc_target, blc_weight=blc_weight)
        draw_shares(shares, output_dir / FIGURE, blc_target, blc_weight)
    except Exception as error:  # of a drawing library, too
        (output_dir / FIGURE).unlink(missing_ok=True)  # it may be half a figure
        logger.warning("no figure of the experts' shares: %s: %s", type(error).__name__, error)


def closing_words(arguments: Arguments, metrics: dict[str, dict[str, float]], shares: Shares | None = None) -> str:
    """The summary that ends a run.

    Args:
        arguments: What the run was started with.
        metrics: What `before_and_after` returned.
        shares: What the experts did in the last evaluation.

    Returns:
        Several lines of text.
    """
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
        *_python(model.model_name_or_path, adapter),
    ]
    lines += ["", "Generate:", f"  {_generate(data, adapter)}"]
    lines += ["", "Evaluate:", f"  {_evaluate(data, model.model_name_or_path, adapter)}", ""]
    return "\n".join(lines)


def table(metrics: dict[str, dict[str, float]]) -> list[str]:
    """What was measured, a line each.

    Args:
        metrics: What `before_and_after` returned.

    Returns:
        Lines such as `perplexity: 7.4 before, 2.7 after`.
    """
    before, after = metrics["before"], metrics["after"]
    return [
        f"{_NAMES[name]}: {f'{before[name]:.4g} before, ' if name in before else ''}{value:.4g} after"
        for name, value in after.items()
    ]


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
    template = "" if data.prompt_template == "release" else f" --template {data.prompt_template}"
    return f'{_interpreter()} -m loramoe.generate --adapter {adapter}{template} --prompt "…"'


def _evaluate(data: Any, base: str, adapter: Path) -> str:
    if data.recall_file:
        return f"{_interpreter()} -m loramoe.recall --adapter {adapter} --file {data.recall_file}"
    return (
        f"PYTHONPATH=. {_interpreter()} -m lm_eval --model hf --model_args pretrained={base},peft={adapter} --tasks …"
    )
