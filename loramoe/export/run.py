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
from loramoe.export.distance import answer_scores, relative_errors
from loramoe.export.lora import Factors, adapter_layers, mean_gates, plain_lora, save_lora
from loramoe.loading import adapter_folder
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
) -> dict[str, Any]:
    """Writes the active LoRAMoE adapter of a model as a plain PEFT LoRA, and measures how far that is from it.

    An approximation: the gates of each layer become their mean over the calibration samples.

    Args:
        model: A PeftModel with one active adapter, of LoRAMoE; left in evaluation mode.
        folder: Folder to write; it appears whole or not at all.
        calibration: Batches with `input_ids` [B, S] and maybe `attention_mask` [B, S], as `SftCollator` makes them.
        test: Batches with `labels` [B, S] too, and maybe `task_types` [B]. Default: `calibration`, read again.
        rank: Rank of the LoRA. Default: E·R, which cuts nothing.
        merge: Write the base model with the LoRA merged into it; this unloads the adapter from the model.
        tokenizer: Saved too.
        source: Folder of the adapter, or its name on the hub, for the card; its prompt format is copied.
        overwrite: Replace an earlier export in that folder.

    Returns:
        The content of export_report.json; see `loramoe.export.distance`.

    Raises:
        UsageError: If the adapter or the samples cannot be exported, or the folder is in use.
    """
    adapter_layers(model.eval())  # checks the model
    check_output_dir(Path(folder), overwrite, REPORT)
    saved = adapter_folder(source) if source else None
    with torch.no_grad():
        gates, tokens = mean_gates(model, calibration)
        factors = plain_lora(model, gates, rank)
        measured = calibration if test is None else test
        groups, errors = answer_scores(model, factors, measured), relative_errors(model, factors, measured)
    base = model.active_peft_config.base_model_name_or_path
    report = {
        "format": "merged" if merge else "lora",
        "source": public_name(source or model.active_adapter),
        "base_model": public_name(base) if base else None,
        "experts": model.active_peft_config.lora_nums,
        "rank": len(next(iter(factors.values()))[0]),
        "calibration_tokens": tokens,
        "held_out": test is not None,
        "groups": groups,
        "relative_error": errors,
        "mean_gates": {key: gates_E.tolist() for key, gates_E in gates.items()},
    }
    with replace_dir(Path(folder)) as draft:
        (_save_merged if merge else save_lora)(model, factors, draft)
        _card(report, hub_name(base) if base else None).save(draft / "README.md")
        finish_folder(draft, report, tokenizer, saved)
    return report


def _save_merged(model: Any, factors: Factors, folder: Path) -> None:
    save_lora(model, factors, folder)
    merged = PeftModel.from_pretrained(model.unload(), folder).merge_and_unload()
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        (folder / name).unlink()
    merged.save_pretrained(folder)


def _card(report: Mapping[str, Any], base: str | None) -> ModelCard:
    merged = report["format"] == "merged"
    data = ModelCardData(base_model=base, tags=["lora", "loramoe", "approximation"])
    data["library_name"] = "transformers" if merged else "peft"
    if base:
        data["base_model_relation"] = "merge" if merged else "adapter"
    card: ModelCard = ModelCard.from_template(data, template_path=str(TEMPLATE), version=loramoe.__version__, **report)
    return card


def finish_folder(
    folder: Path, report: Mapping[str, Any], tokenizer: Any = None, adapter: str | Path | None = None
) -> None:
    """Adds the tokenizer, the prompt format of an adapter's folder, and export_report.json.

    The report lists all files of the folder, which a later export may replace.
    """
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    if adapter is not None and (prompt := Path(adapter) / PROMPT_FILE).is_file():
        shutil.copy(prompt, folder)
    files = sorted({REPORT, *(entry.name for entry in folder.iterdir())})
    write_json(folder / REPORT, {**report, "loramoe": loramoe.__version__, "files": files})
