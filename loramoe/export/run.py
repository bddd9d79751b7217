"""The export from beginning to end: mean gates, the plain LoRA, its distance from the mixture, and the folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor

import loramoe
from loramoe.adapter_files import CONFIG, SAFE
from loramoe.data.disk import sync
from loramoe.export.adapted import ExportError, adapted, in_evaluation
from loramoe.export.card import model_card
from loramoe.export.distance import BASE, EXPORT, MIXTURE, distance
from loramoe.export.figure import FIGURE, draw_linears
from loramoe.export.gates import mean_gates
from loramoe.export.lora import as_plain_lora, plain_lora
from loramoe.export.report import REPORT, ExportReport, LinearReport
from loramoe.recall import Probe, recall
from loramoe.training.files import sync_all
from loramoe.training.versions import save_tokenizer

CARD: Final = "README.md"


def export_lora(
    model: Any,
    folder: str | os.PathLike[str],
    calibration: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]] | None = None,
    *,
    tokenizer: Any = None,
    probes: Sequence[Probe] = (),
    source: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> ExportReport:
    """Writes the active LoRAMoE adapter of a model as a plain PEFT LoRA, and how far that is from it.

    Each linear's gates become their mean over the calibration rows, so the export is an approximation, and what it is
    worth only the measured distance tells; docs/export.md says when not to use it. The folder appears whole or not at
    all. The model is left as it was.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE.
        folder: Where to write adapter_config.json, adapter_model.safetensors, README.md and export_report.json.
        calibration: Batches of rows like those that the export will meet: `input_ids` [B, S] and, unless every token is
            real, `attention_mask` [B, S]. A DataLoader with `loramoe.data.SftCollator` gives them.
        test: Batches of held-out rows, with `labels` [B, S] too, and maybe `task_types` [B]. Default: the distance is
            measured on the calibration rows, which flatters it, and the report says so.
        tokenizer: Saved beside the adapter; needed for `probes`.
        probes: Facts whose recall is measured, as `loramoe.recall` does.
        source: What the adapter is called in the model card; default: its name in the model.
        overwrite: Replace an earlier export in that folder; whatever else is there is never replaced.
        progress: Show progress bars.

    Returns:
        The report, as it stands in the folder.

    Raises:
        ExportError: If the adapter cannot be exported, the rows do not serve, or the folder is in use.
    """
    adapter, target = adapted(model), Path(folder)
    refuse_used(target, overwrite)
    if test is None and isinstance(calibration, Iterator):
        raise ExportError(
            "calibration can be read once only, but without test rows it is read twice: for the mean gates and for the "
            "distance. Give a list or a DataLoader, or test rows."
        )
    if probes and tokenizer is None:
        raise ExportError("probes are asked as text, which needs a tokenizer. Give one, or no probes.")
    statistics = mean_gates(model, calibration, progress=progress)
    gates = {linear: each.mean_E for linear, each in statistics.items()}
    measured = distance(model, calibration if test is None else test, gates, progress=progress)
    config, weights = plain_lora(model, gates)
    report = ExportReport(
        loramoe=loramoe.__version__,
        source=source or adapter.name,
        base_model=adapter.config.base_model_name_or_path,
        experts=adapter.config.lora_nums,
        rank=config["r"],
        calibration_tokens=next(iter(statistics.values())).tokens,
        held_out=test is not None,
        lost=measured.lost,
        groups=measured.groups,
        recall=_recall(model, tokenizer, probes, gates, progress),
        linears={
            linear: LinearReport(each.mean_E.tolist(), each.spread, measured.relative_error[linear])
            for linear, each in statistics.items()
        },
    )
    with _whole_or_not_at_all(target, overwrite) as unfinished:
        _write(unfinished, config, weights, report, tokenizer)
    return report


def _recall(
    model: Any, tokenizer: Any, probes: Sequence[Probe], gates: Mapping[str, Tensor], progress: bool
) -> dict[str, float]:
    """Share of the probes that each side recalls; nothing without probes."""
    if not probes:
        return {}

    def share() -> float:
        hits = recall(model, tokenizer, probes, progress=progress)
        return sum(hits) / len(hits)

    shares = {}
    with in_evaluation(model):
        with model.disable_adapter():
            shares[BASE] = share()
        shares[MIXTURE] = share()
        with as_plain_lora(model, gates):
            shares[EXPORT] = share()
    return shares


def refuse_used(folder: Path, overwrite: bool) -> None:
    """Refuses to write where something is, before any work is done.

    Args:
        folder: Where to write.
        overwrite: Whether an earlier export may be replaced; nothing else ever is, least of all the trained adapter.

    Raises:
        ExportError: If it is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a folder. Choose another name.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / REPORT).is_file():
        raise ExportError(f"{folder} is in use, and by no earlier export: no {REPORT} is in it. Choose another.")
    if not overwrite:
        raise ExportError(f"{folder} holds an earlier export. Choose another folder, or replace it with overwrite.")


def _write(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], report: ExportReport, tokenizer: Any
) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(dict(weights), folder / SAFE, metadata={"format": "pt"})
    (folder / REPORT).write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")
    drawn = importlib.util.find_spec("matplotlib") is not None  # optional, for the figure alone
    if drawn:
        draw_linears(report.linears, folder / FIGURE)
    (folder / CARD).write_text(model_card(report, FIGURE if drawn else None), encoding="utf-8")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)


@contextmanager
def _whole_or_not_at_all(target: Path, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside the target, which takes its place once it is whole and on disk, or is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = unfinished.with_name(f"{unfinished.name}.old")
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        yield unfinished
        sync_all(unfinished)
        if overwrite and target.exists():
            os.replace(target, old)
        os.replace(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if old.exists():
            os.replace(old, target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)
