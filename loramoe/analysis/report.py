"""The report on an adapter's experts: a page in one HTML file, its two figures, and the numbers as JSON.

`loramoe report` writes it of samples from a file, a training of its last evaluation.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from loramoe.analysis.routing import Array, RoutingStats, collect_routing
from loramoe.analysis.target import conclude, separation, target_shares
from loramoe.data import TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.loading import adapter_folder, add_model_flags, base_name, load_from_flags, load_tokenizer
from loramoe.tuner.config import LoraMoeConfig
from loramoe.utils import atomic_save_dir, check_output_dir, positive, public_name

PAGE: Final = "experts.html"
NUMBERS: Final = "experts.json"
FIGURES: Final = ("experts_groups.png", "experts_gates.png")
FILES: Final = (PAGE, NUMBERS, *FIGURES)
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS: Final = tuple("osD^vPX")  # lines can be read without colour


def write_report(
    stats: RoutingStats, config: LoraMoeConfig, type_names: Mapping[int, str], folder: Path, **observed: str
) -> str:
    """Writes the report of an evaluation into a folder.

    Args:
        stats: What the routers did.
        config: The adapter's configuration.
        type_names: Names of the task types; one without a name is called `type2`.
        folder: Folder to write.
        observed: Names of `adapter`, `base_model` and `data`; without paths a report can be published unchanged.

    Returns:
        The sentence that concludes.

    Raises:
        OSError: If the files cannot be written; those of an earlier report stay.
    """
    names = {t: type_names.get(t, f"type{t}") for t in stats.groups}
    target_TG, conclusion = target_shares(stats, config), conclude(stats, config, names)
    figures = plot_groups(stats, target_TG, names, conclusion.partition(":")[0]), plot_experts(stats, names)
    numbers = {
        **observed,
        **{name: getattr(config, name) for name in ("blc_target", "blc_weight", "blc_alpha")},
        "files": FILES,
        "conclusion": conclusion,
        "separation": separation(stats.share_TG, stats),
        "target_TG": target_TG,
        **asdict(stats),
    }
    text = json.dumps(numbers, indent=1, allow_nan=False, default=np.ndarray.tolist)
    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True}
    template = Environment(loader=PackageLoader("loramoe.analysis"), **options).get_template("report.html.j2")
    values = {"stats": stats, "config": config, "names": names, "target_TG": target_TG, "conclusion": conclusion}
    with atomic_save_dir(folder, hidden=".experts.incomplete", last=PAGE) as draft:
        for name, figure in zip(FIGURES, figures, strict=True):
            figure.savefig(draft / name, dpi=150)
        pictures = [base64.b64encode((draft / name).read_bytes()).decode() for name in FIGURES]
        html = template.render(**values, **observed, pictures=pictures, zip=zip)
        (draft / NUMBERS).write_text(text + "\n", encoding="utf-8")
        (draft / PAGE).write_text(html + "\n", encoding="utf-8")
    return conclusion


def remove_report(folder: Path) -> None:
    """Removes the files of a report from a folder; all else stays."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def plot_groups(stats: RoutingStats, target_TG: Array | None, names: Mapping[int, str], title: str) -> Figure:
    """The weight of each group by layer and task type, as difference from an even share; targets are dashed."""
    even_G = stats.of_group_EG.mean(axis=0)
    points_TNG = 100 * (stats.by_decoder_layer(stats.share_TLG) - even_G)
    figure, panels = _panels(len(stats.groups), 3.4)
    for g, (panel, group) in enumerate(zip(panels, stats.groups, strict=True)):
        panel.axhline(0, color="0.6", linewidth=1)
        panel.set_prop_cycle(color=COLOURS, marker=MARKERS)
        for t, task_type in enumerate(stats.task_types):
            (line,) = panel.plot(points_TNG[t, :, g], label=f"{names[task_type]} samples")
            if target_TG is not None:
                aim, dashed = 100 * (target_TG[t, g] - even_G[g]), {"linestyle": "--", "linewidth": 1}
                panel.axhline(aim, color=line.get_color(), label=f"target, {names[task_type]}", **dashed)
        panel.set_title(f"{names[group]} experts", fontsize=10)
        _label_layers(panel.xaxis, stats)
        panel.grid(alpha=0.25)
    figure.suptitle(title, fontsize=11)
    panels[0].set_ylabel("difference from an even share, points")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(points_TNG), fontsize=8, handlelength=3)
    return figure


def plot_experts(stats: RoutingStats, names: Mapping[int, str]) -> Figure:
    """The mean gate of each expert by layer, task types side by side, in colours that diverge around 1/E."""
    order = np.argsort(stats.expert_types, kind="stable")  # experts of one group stand together
    points_TNE = 100 * (stats.by_decoder_layer(stats.gate_TLE)[..., order] - 1 / len(order))
    most = max(float(np.abs(points_TNE).max()), 0.1)
    figure, panels = _panels(len(stats.task_types), min(9.0, 1.9 + 0.24 * points_TNE.shape[1]))
    for points_NE, panel, task_type in zip(points_TNE, panels, stats.task_types, strict=True):
        image = panel.imshow(points_NE, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        for e in np.flatnonzero(np.diff(np.array(stats.expert_types)[order])):
            panel.axvline(e + 0.5, color="black", linewidth=1.5)
        panel.set_title(f"{names[task_type]} samples", fontsize=10)
        panel.set_xticks(range(len(order)), order, fontsize=7)
        panel.set_xlabel(" | ".join(names[group] for group in stats.groups) + " experts", fontsize=8)
    _label_layers(panels[0].yaxis, stats)
    figure.colorbar(image, ax=list(panels), label=f"difference from 1/{len(order)}, points")
    return figure


def _panels(count: int, height: float) -> tuple[Figure, Any]:
    # Without pyplot, which would keep each figure.
    figure = Figure(figsize=(1 + 3.2 * count, height), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, count, squeeze=False, sharey=True)[0]


def _label_layers(axis: Any, stats: RoutingStats) -> None:
    labels = list(stats.decoder_layers)
    step = -(-len(labels) // 16)  # 16 labels have room
    axis.set_ticks(range(0, len(labels), step), labels[::step], fontsize=7)
    axis.set_label_text("layer")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loramoe report", description="Which expert serves which task type.")
    add = parser.add_argument
    add("--adapter", required=True, help="adapter folder or hub name")
    add_model_flags(parser, adapter=False)
    add("--file", "--data", required=True, help="file or folder of samples")
    add("--output_dir", default="output/experts", help="folder of the report; default: %(default)s")
    add("--overwrite", action="store_true", help="replace a report that is in output_dir")
    add("--limit", type=positive, help="most samples to run, evenly spaced in the file; default: all")
    add("--batch_size", type=positive, default=8, help="samples at once; default: %(default)s")
    add("--max_seq_length", type=positive, help="most tokens of a sample; default: as in the training")
    add("--template", "--prompt_template", choices=sorted(TEMPLATES), help="default: as in the training")
    return parser


def _report(flags: argparse.Namespace) -> str:
    """Writes the report; everything that can be wrong with the flags is checked before the model is loaded."""
    folder, adapter = Path(flags.output_dir), public_name(flags.adapter)
    check_output_dir(folder, flags.overwrite, NUMBERS)
    flags.adapter = adapter_folder(flags.adapter)
    base = base_name(flags.base_model, [flags.adapter])
    tokenizer, layout = load_tokenizer(base, [flags.adapter]), choose_prompt_format(flags.template, [flags.adapter])
    length = flags.max_seq_length or layout.max_seq_length
    samples, found = tokenise_dataset(flags.file, tokenizer, template=layout.template, max_seq_length=length)
    print(f"{flags.file}: {found}")
    collate = SftCollator(pad_id(tokenizer))
    batches: DataLoader[Any] = DataLoader(evenly_spaced(samples, flags.limit), flags.batch_size, collate_fn=collate)
    model, _ = load_from_flags(flags)
    observed = {"adapter": adapter, "base_model": public_name(base), "data": public_name(flags.file)}
    stats = collect_routing(model, batches)
    conclusion = write_report(stats, model.active_peft_config, layout.type_names, folder, **observed)
    return f"{conclusion}\nwrote {folder / PAGE}"


def main(argv: list[str] | None = None) -> int:
    """Runs `loramoe report`; the exit code is 1 if no report was written."""
    flags = _parser().parse_args(argv)
    try:
        print(_report(flags))
    except (ValueError, OSError, ImportError) as error:
        print(f"loramoe report: {error}", file=sys.stderr)
        return 1
    return 0
