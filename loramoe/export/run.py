"""The export from beginning to end: mean gates, plain LoRA, distance, and the folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

import loramoe
from loramoe.compat.tokenizer import save_tokenizer
from loramoe.data.templates import PROMPT_FILE
from loramoe.export.adapter import ActiveAdapter, get_active_adapter, mean_gates
from loramoe.export.distance import measure_distance
from loramoe.export.lora import Factors, plain_lora, save_lora
from loramoe.utils import check_output_dir, hub_name, public_name, replace_dir, write_json

REPORT: Final = "export_report.json"
TEMPLATE: Final = Path(__file__).with_name("card.md.j2")


def export_lora(
    model: Any,
    folder: str | os.PathLike[str],
    calibration: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]] | None = None,
    *,
    rank: int | None = None,
    merge: bool = False,
    tokenizer: Any = None,
    source: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes the active LoRAMoE adapter of a model as a plain PEFT LoRA, and measures how far that is from it.

    The gates of each layer become their mean over the calibration samples, so the result is an approximation.

    Args:
        model: A PeftModel whose one active adapter is of LoRAMoE; left in evaluation mode.
        folder: Folder to write; it appears whole or not at all.
        calibration: Batches with `input_ids` [B, S] and maybe `attention_mask` [B, S], as `SftCollator` makes them.
        test: Batches with `labels` [B, S] too, and maybe `task_types` [B]. Default: `calibration`, read again.
        rank: Rank of the LoRA. Default: E·R, which cuts nothing.
        merge: Write the base model with the LoRA merged into it; this unloads the adapter from the model.
        tokenizer: Saved too.
        source: Folder or name of the adapter, for the card; its prompt format is copied.
        overwrite: Replace an earlier export in that folder.
        progress: Show progress bars.

    Returns:
        The content of export_report.json; see `measure_distance`.

    Raises:
        UsageError: If the adapter or the samples cannot be exported, or the folder is in use.
    """
    adapter = get_active_adapter(model.eval())
    check_output_dir(Path(folder), overwrite, REPORT)
    with torch.no_grad():
        gates, tokens = mean_gates(adapter, calibration, progress)
        factors = plain_lora(adapter, gates, rank)
        measured = measure_distance(adapter, factors, calibration if test is None else test, progress)
    how = {"format": "merged" if merge else "lora", "calibration_tokens": tokens, "held_out": test is not None}
    report = {**how, **_describe(adapter, factors, source), **measured}
    report["mean_gates"] = {key: gates_E.tolist() for key, gates_E in gates.items()}
    with replace_dir(Path(folder)) as draft:
        _write(draft, adapter, factors, report, tokenizer, Path(source, PROMPT_FILE))
    return report


def _describe(adapter: ActiveAdapter, factors: Factors, source: str) -> dict[str, Any]:
    base = adapter.config.base_model_name_or_path
    names = {"source": public_name(source or adapter.name), "base_model": public_name(base) if base else None}
    return {**names, "experts": adapter.config.lora_nums, "rank": len(next(iter(factors.values()))[0])}


def _write(
    folder: Path, adapter: ActiveAdapter, factors: Factors, report: Mapping[str, Any], tokenizer: Any, prompt: Path
) -> None:
    merged, base = report["format"] == "merged", adapter.config.base_model_name_or_path or ""
    relation: dict[str, Any] = {"base_model": hub_name(base), "base_model_relation": "merge" if merged else "adapter"}
    data = ModelCardData(
        library_name="transformers" if merged else "peft",
        tags=["lora", "loramoe", "approximation"],
        **(relation if relation["base_model"] else {}),
    )
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), version=loramoe.__version__, **report)
    save_lora(adapter, factors, folder)
    if merged:
        model = PeftModel.from_pretrained(adapter.model.unload(), folder).merge_and_unload()
        for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
            (folder / name).unlink()
        model.save_pretrained(folder)
    card.save(folder / "README.md")
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    if prompt.is_file():
        shutil.copy(prompt, folder)
    write_report(folder, report)


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes export_report.json, which lists the files of the folder: a later export may replace these."""
    files = sorted({REPORT, *(entry.name for entry in folder.iterdir())})
    write_json(folder / REPORT, {**report, "loramoe": loramoe.__version__, "files": files})
