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

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

import loramoe
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.export.adapted import Adapted, ExportError, adapted, in_evaluation
from loramoe.export.card import model_card
from loramoe.export.distance import BASE, EXPORT, MIXTURE, Distance, distance
from loramoe.export.figure import FIGURE, draw_linears
from loramoe.export.gates import GateStatistics, mean_gates
from loramoe.export.lora import as_plain_lora, plain_lora
from loramoe.export.report import REPORT, ExportReport, LinearReport
from loramoe.recall import Probe, recall
from loramoe.utils import hub_name, public_name, sync, sync_all

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
        source: What the adapter is called in the model card, of a path its last part; default: its name in the model.
        overwrite: Replace an earlier export in that folder, unless anything else is there too.
        progress: Show progress bars.

    Returns:
        The report; the folder's export_report.json holds it, and the names of the files that were written.

    Raises:
        ExportError: If the adapter cannot be exported, the rows do not serve, or the folder is in use.
    """
    adapter = adapted(model)
    refuse_used(Path(folder), overwrite)
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
    shares = _recall(model, tokenizer, probes, gates, progress)
    report = _report(adapter, source, statistics, measured, shares, held_out=test is not None)
    # Resolved, because a link to a folder cannot be replaced by a folder.
    with whole_or_not_at_all(Path(folder).resolve(), overwrite) as unfinished:
        _write(unfinished, config, weights, report, tokenizer)
    return report


def _report(
    adapter: Adapted,
    source: str,
    statistics: Mapping[str, GateStatistics],
    measured: Distance,
    shares: dict[str, float],
    held_out: bool,
) -> ExportReport:
    """What is published of an export: the adapter and its base model by their names, as paths concern nobody else."""
    base = adapter.config.base_model_name_or_path
    return ExportReport(
        loramoe=loramoe.__version__,
        source=public_name(source or adapter.name),
        base_model=public_name(base) if base else None,
        base_on_hub=bool(base and hub_name(base)),
        experts=adapter.config.lora_nums,
        rank=adapter.config.r * adapter.config.lora_nums,
        calibration_tokens=next(iter(statistics.values())).tokens,
        held_out=held_out,
        lost=measured.lost,
        groups=measured.groups,
        recall=shares,
        linears={
            linear: LinearReport(each.mean_E.tolist(), each.spread, measured.relative_error[linear])
            for linear, each in statistics.items()
        },
    )


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
        overwrite: Whether an earlier export may be replaced; nothing else ever is: no trained adapter, nor what was
            put beside the export.

    Raises:
        ExportError: If it is in use.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a folder. Choose another name.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    written = _written(folder)
    if not written:
        raise ExportError(
            f"{folder} is in use, and by no earlier export: no {REPORT} that lists its files is in it. Choose another."
        )
    if not overwrite:
        raise ExportError(f"{folder} holds an earlier export. Choose another folder, or replace it with overwrite.")
    if others := sorted({entry.name for entry in folder.iterdir()} - written):
        raise ExportError(
            f"{folder} holds more than an earlier export: {others}. Move that away, or choose another folder."
        )


def _written(folder: Path) -> set[str]:
    """The names that an earlier export wrote into a folder, by its report; none if there is no such report."""
    try:
        return set(json.loads((folder / REPORT).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _write(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], report: ExportReport, tokenizer: Any
) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(dict(weights), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    drawn = importlib.util.find_spec("matplotlib") is not None  # optional, for the figure alone
    if drawn:
        draw_linears(report.linears, folder / FIGURE)
    (folder / CARD).write_text(model_card(report, FIGURE if drawn else None), encoding="utf-8")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    files = sorted([REPORT, *(entry.name for entry in folder.iterdir())])
    told = {**dataclasses.asdict(report), "files": files}
    (folder / REPORT).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@contextmanager
def whole_or_not_at_all(target: Path, overwrite: bool) -> Iterator[Path]:
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
