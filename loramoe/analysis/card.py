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
from loramoe.analysis.report import render
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import atomic_save_dir, hub_name, public_name

CARD: Final = "README.md"
TAGS: Final = ["lora", "loramoe", "mixture-of-experts", "moe", "peft"]
_RESULTS = {"loss": "evaluation loss", "perplexity": "perplexity", "recall": "recall"}


def write_card(
    folder: Path,
    config: LoraMoeConfig,
    base_model: str,
    results: Mapping[str, Mapping[str, float]],
    args: Any,
    state: Any,
    *,
    data: object = "",
    conclusion: str = "",
    figure: Path | None = None,
    repository: str | None = None,
) -> None:
    """Writes the card into the folder of an adapter.

    Args:
        folder: The adapter's folder.
        config: The adapter's configuration.
        base_model: The base model's folder, or its name on the hub; the hub would take a folder for a name.
        results: `before` and `after` the training, each with those of loss, perplexity and recall that were measured.
        args: TrainingArguments of the run.
        state: TrainerState of the run.
        data: What the run was trained on, in words.
        conclusion: What the report on the experts concludes.
        figure: A figure to copy beside the card and to show in it.
        repository: The adapter's name on the hub.
    """
    base, after, before = hub_name(base_model), results.get("after", {}), results.get("before", {})
    relation = "adapter" if base else None
    metadata = ModelCardData(
        library_name="peft", pipeline_tag="text-generation", tags=TAGS, base_model=base, base_model_relation=relation
    )
    versions = {"PEFT": peft, "Transformers": transformers, "Pytorch": torch, "LoRAMoE": loramoe}
    text = render(
        "card.md.j2",
        card_data=metadata.to_yaml(),
        on_hub=base is not None,
        base_name=public_name(base_model),
        config=config,
        repository=repository,
        conclusion=conclusion,
        results=[(label, before.get(name), after[name]) for name, label in _RESULTS.items() if name in after],
        figure=figure and figure.name,
        args=args,
        state=state,
        data=data,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        cell=_cell,
        versions={name: module.__version__ for name, module in versions.items()},
    )
    with atomic_save_dir(folder) as draft:
        if figure is not None:
            shutil.copyfile(figure, draft / figure.name)
        ModelCard(text).save(draft / CARD)


def _cell(value: object) -> str:
    value = getattr(value, "value", value)  # of an Enum
    items = sorted(value) if isinstance(value, set) else value if isinstance(value, list) else str(value).splitlines()
    return ", ".join(map(str, items)).replace("|", "\\|")
