"""One run: a base model, an arm, a learning rate, a number of rows and a seed; and the file that it leaves."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from loramoe.report import Shares
from numpy.typing import NDArray

from experiments.knowledge_forgetting.arms import ARMS, Recipe, prepare, recipe_of, trainable
from experiments.knowledge_forgetting.scale import Scale
from experiments.knowledge_forgetting.train import Trained, train
from loramoe.training.model import enable_varlen_attention


@dataclass(frozen=True)
class Settings:
    """What makes a run what it is.

    Attributes:
        scale: Name of the scale.
        arm: Name of the arm.
        learning_rate: At its peak.
        rows: Rows of training data.
        seed: Of the rows, their order, the adapter's start and dropout.
        changes: What differs from the arm's recipe.
    """

    scale: str
    arm: str
    learning_rate: float
    rows: int
    seed: int
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        parts = [self.arm, f"lr{self.learning_rate:g}", f"rows{self.rows}", f"seed{self.seed}"]
        return "-".join([*parts, *(f"{key}={_plain(value)}" for key, value in sorted(self.changes.items()))])


def _plain(value: Any) -> str:
    return "+".join(value) if isinstance(value, (tuple, list)) else str(value)


def run(settings: Settings, scale: Scale, provenance: dict[str, Any], progress: bool = True) -> dict[str, Any]:
    """Trains and asks.

    Args:
        settings: Of the run.
        scale: The scale that they name.
        provenance: With what, on what and when, as `provenance_of` tells it.
        progress: Show a progress bar.

    Returns:
        What its file holds: settings, accuracy and items by set, routing, curve, times, provenance.
    """
    arm, recipe = ARMS[settings.arm], recipe_of(settings.arm, settings.changes)
    model, tokenizer = scale.base()
    if scale.packing:
        enable_varlen_attention(model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    model = prepare(model, arm.kind, recipe)
    trained = Trained(0, [], None, 0.0)
    if arm.kind != "base":
        rows = scale.train_rows(settings.rows, settings.seed, recipe.replay)
        trained = train(model, tokenizer, rows, scale, recipe, settings.learning_rate, progress)
    start = time.perf_counter()
    hits = {"validation": scale.score(model, tokenizer, "validation"), "test": scale.score(model, tokenizer, "test")}
    seconds = {"training": round(trained.seconds, 2), "evaluation": round(time.perf_counter() - start, 2)}
    return {
        "settings": asdict(settings),
        "recipe": plain(recipe),
        "trainable_parameters": 0 if arm.kind == "base" else trainable(model),
        "accuracy": {split: {name: float(h.mean()) for name, h in sets.items()} for split, sets in hits.items()},
        "items": {split: {name: packed(h) for name, h in sets.items()} for split, sets in hits.items()},
        "counts": {split: {name: len(h) for name, h in sets.items()} for split, sets in hits.items()},
        "routing": None if trained.shares is None else routing(trained.shares),
        "curve": trained.curve,
        "steps": trained.steps,
        "seconds": seconds,
        "provenance": provenance,
    }


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON gives it back."""
    return dict(json.loads(json.dumps(asdict(recipe))))


def packed(hits: NDArray[np.bool_]) -> str:
    """Hits as text, eight of them a byte, in base64."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def routing(shares: Shares) -> dict[str, Any]:
    """How the experts were used.

    Args:
        shares: Of the last steps of training.

    Returns:
        `coefficient_of_variation` of the experts' importance, see `Shares.cov`, and `share` of each group of experts by
        task type; both as means over the linears.
    """
    share_TG = shares.group_share().mean(dim=1)
    return {
        "coefficient_of_variation": shares.cov().mean().item(),
        "share": {str(task_type): share_TG[t].tolist() for t, task_type in enumerate(shares.task_types)},
    }
