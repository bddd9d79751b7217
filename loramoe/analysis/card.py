"""The model card of a trained adapter: its README.md, which the Hugging Face hub shows as the adapter's page.

It names no path, so it can be published as it is. PEFT's `save_pretrained` updates an existing card and keeps its text.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

import loramoe
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import atomic_save_dir, hub_name, public_name

CARD: Final = "README.md"
TEMPLATE: Final = Path(__file__).parent / "templates" / "card.md.j2"
TAGS: Final = ["lora", "loramoe", "mixture-of-experts", "moe", "peft"]


def write_card(
    folder: Path,
    config: LoraMoeConfig,
    base_model: str,
    results: Mapping[str, Mapping[str, float]],
    args: Any,
    state: Any,
    *,
    figure: Path | None = None,
    **values: Any,
) -> None:
    """Writes the card of a run into the folder of its adapter.

    Args:
        folder: The adapter's folder.
        config: The adapter's configuration.
        base_model: The base model's folder, or its name on the hub; the hub would take a folder for a name.
        results: `before` and `after` the training, each with those of loss, perplexity and recall that were measured.
        args: TrainingArguments of the run.
        state: TrainerState of the run.
        figure: A figure to copy beside the card and to show in it.
        values: `data`, and maybe `conclusion` of the report and `repository` on the hub.
    """
    base = hub_name(base_model)
    relation = "adapter" if base else None
    metadata = ModelCardData(
        library_name="peft", pipeline_tag="text-generation", tags=TAGS, base_model=base, base_model_relation=relation
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    libraries = {"PEFT": peft, "Transformers": transformers, "Pytorch": torch, "LoRAMoE": loramoe}
    values |= {"config": config, "results": results, "args": args, "state": state, "figure": figure}
    values |= {"base_name": public_name(base_model), "device": device, "libraries": libraries, "cell": _cell}
    with atomic_save_dir(folder) as draft:
        if figure is not None:
            shutil.copyfile(figure, draft / figure.name)
        ModelCard.from_template(metadata, str(TEMPLATE), **values).save(draft / CARD)


def _cell(value: object) -> str:
    value = getattr(value, "value", value)  # of an Enum
    items = sorted(value) if isinstance(value, set) else value if isinstance(value, list) else str(value).splitlines()
    return ", ".join(map(str, items)).replace("|", "\\|")
