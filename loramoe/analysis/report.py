"""The report on an adapter's experts: a page in one HTML file, its two figures, and the numbers as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from loramoe.analysis.log import group_layers
from loramoe.analysis.plots import by_decoder_layer, plot_experts, plot_groups
from loramoe.analysis.routing import RoutingStats
from loramoe.analysis.target import conclude, separation, target_shares
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import atomic_save_dir

PAGE: Final = "experts.html"
NUMBERS: Final = "experts.json"
FIGURES: Final = ("experts_groups.png", "experts_gates.png")


@dataclass(frozen=True)
class ReportInfo:
    """What was observed, in names without paths: a report can be published as it is."""

    adapter: str
    base_model: str
    data: str
    config: LoraMoeConfig
    type_names: Mapping[int, str] = field(default_factory=dict)  # a type without a name is called `type2`


def write_report(stats: RoutingStats, info: ReportInfo, folder: Path) -> str:
    """Writes the report into a folder, and returns the sentence that concludes.

    Raises:
        OSError: If the files cannot be written; those of an earlier report stay.
    """
    names = {t: info.type_names.get(t, f"type{t}") for t in stats.groups}
    target_TG, conclusion = target_shares(stats, info.config), conclude(stats, info.config, names)
    title = conclusion.partition(":")[0]
    drawn = zip(FIGURES, (plot_groups(stats, target_TG, names, title), plot_experts(stats, names)), strict=True)
    with atomic_save_dir(folder, hidden=".experts.incomplete", last=PAGE) as draft:
        for name, figure in drawn:
            figure.savefig(draft / name, dpi=150)
        numbers = {
            **{name: getattr(info, name) for name in ("adapter", "base_model", "data")},
            **{name: getattr(info.config, name) for name in ("blc_target", "blc_weight", "blc_alpha")},
            "files": [PAGE, NUMBERS, *FIGURES],
            "conclusion": conclusion,
            "separation": separation(stats.share_TG, stats),
            "target_TG": target_TG,
            **asdict(stats),
        }
        text = json.dumps(numbers, indent=1, allow_nan=False, default=np.ndarray.tolist)
        (draft / NUMBERS).write_text(text + "\n", encoding="utf-8")
        page = render(
            "report.html.j2",
            stats=stats,
            info=info,
            names=names,
            conclusion=conclusion,
            target_TG=target_TG,
            layers=list(group_layers(stats.layers)),
            by_layer=lambda values, axis=1: by_decoder_layer(values, stats.layers, axis),
            pictures=[base64.b64encode((draft / name).read_bytes()).decode() for name in FIGURES],
        )
        (draft / PAGE).write_text(page, encoding="utf-8")
    return conclusion


def render(template: str, **values: Any) -> str:
    """Renders a template of this package; in HTML, values are escaped."""
    environment = Environment(
        loader=PackageLoader("loramoe.analysis"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values, zip=zip)


def remove_report(folder: Path) -> None:
    """Removes the files of a report from a folder; all else stays."""
    for name in (PAGE, NUMBERS, *FIGURES):
        (folder / name).unlink(missing_ok=True)
