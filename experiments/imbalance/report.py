"""The table and the figure of the runs in `results/`, and whether those that are there are still theirs.

A page says where the table belongs by a pair of comments, and what stands between them is replaced; the PNG carries a
digest of the results that it shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments.imbalance.train import ARMS, RESULTS, ROOT, SEEDS, result_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = ROOT / "docs/figures/imbalance.png"
PAGES = (RESULTS.parent / "README.md", ROOT / "docs/experiments.md")
BEGIN, END = "<!-- imbalance:table -->", "<!-- /imbalance:table -->"
SETTLED = 100  # steps at the end over which a curve's last value is averaged
DEPTHS = ("early", "middle", "late")
NAMES = {
    "off": "no constraint",
    "paper": "paper (0.1, 0.1)",
    "match": "match (0.1, 0.1)",
    "off_x10": "no constraint, ten times the rate",
    "paper_x10": "paper (0.1, 0.1), ten times the rate",
}
DEPTH_LOOKS = (("#56B4E9", "-", "v"), ("#E69F00", "--", "P"), ("#767676", ":", "*"))
LOOKS = {  # Okabe and Ito's colours
    "off": ("#D55E00", "-", "o"),
    "paper": ("#0072B2", "--", "s"),
    "match": ("#009E73", ":", "^"),
    "off_x10": ("#000000", "-", "X"),
    "paper_x10": ("#CC79A7", "--", "D"),
}

Run = dict[str, Any]


def load() -> dict[str, list[Run]]:
    """The runs of every arm, seed by seed.

    Returns:
        For each arm what `train.measure` returned.

    Raises:
        FileNotFoundError: If one has not been trained yet.
    """
    return {arm: [json.loads(result_file(arm, seed).read_text(encoding="utf-8")) for seed in SEEDS] for arm in ARMS}


def largest_possible(runs: dict[str, list[Run]]) -> float:
    """The coefficient of variation where one expert gets everything: the root of the number of experts."""
    return float(runs["off"][0]["flags"]["lora_nums"]) ** 0.5


def table(runs: dict[str, list[Run]]) -> str:
    """The coefficient of variation of each arm: mean over the seeds, and their range.

    Args:
        runs: What `load` returned.

    Returns:
        A Markdown table, and the line that says what it was measured on.
    """
    head = ["arm", "at the first step", "at the end", *DEPTHS, "most uneven linear", "loss on the test rows"]
    rows = [[NAMES[arm], *_cells(of_seeds)] for arm, of_seeds in runs.items()]
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{over_samples(runs)}\n\n{provenance(runs)}"


def _cells(of_seeds: list[Run]) -> list[str]:
    names = ("cov", *(f"routing/cov/{depth}" for depth in DEPTHS))
    return [
        _over_seeds([run["curve"][0]["cov"] for run in of_seeds]),
        *(_over_seeds([settled(run, name) for run in of_seeds]) for name in names),
        _over_seeds([max(run["test"]["cov"].values()) for run in of_seeds]),
        _over_seeds([run["test"]["loss"] for run in of_seeds]),
    ]


def over_samples(runs: dict[str, list[Run]]) -> str:
    """The same without the constraint, but over samples × experts, as the constraint takes it: root of `blc` a linear.

    Args:
        runs: What `load` returned.

    Returns:
        A sentence.
    """
    linears = len(runs["off"][0]["test"]["cov"])
    said = []
    for arm in ("off", "off_x10"):
        first, last = (
            _over_seeds([(blc(run) / linears) ** 0.5 for run in runs[arm]])
            for blc in (lambda run: run["curve"][0]["blc"], lambda run: settled(run, "blc"))
        )
        said.append(f"{NAMES[arm]}: {first} at the first step, {last} at the end")
    return f"Over samples × experts of a batch, as the constraint takes it, {'; '.join(said)}."


def settled(run: Run, name: str) -> float:
    """Mean of a figure over the last SETTLED steps of a run.

    Args:
        run: The run.
        name: Of the figure, such as `cov`.

    Returns:
        The mean.
    """
    last = run["curve"][-1]["step"]
    return mean(entry[name] for entry in run["curve"] if entry["step"] > last - SETTLED)


def _over_seeds(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def provenance(runs: dict[str, list[Run]]) -> str:
    """What one must know to believe the table, in one line."""
    run = runs["off"][0]
    dates = sorted({one["date"] for of_seeds in runs.values() for one in of_seeds})
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    flags, machine = run["flags"], run["hardware"]
    return (
        f"Mean over {len(SEEDS)} seeds (lowest–highest). data/tiny_llama on data/tiny_data, {flags['max_steps']} steps "
        f"of {flags['per_device_train_batch_size']} rows, E = {flags['lora_nums']}, R = {flags['lora_rank']}, learning "
        f"rate {flags['learning_rate']:g}, constant; the end: the last {SETTLED} steps; the most uneven linear: on the "
        f"test rows. {machine['cpu']}, 1 thread, {versions}; {', '.join(dates)}."
    )


def filled(page: str, runs: dict[str, list[Run]]) -> str:
    """A page with the table of these runs; one without its marker stays as it is.

    Args:
        page: The text.
        runs: What `load` returned.

    Returns:
        The text, what stood between the markers replaced.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(runs)}\n{END}{after}" if begin and end else page


def stale(pages: Sequence[Path], figure: Path) -> list[Path]:
    """Pages and figures that show other runs than those in `results/`.

    Args:
        pages: Pages that may hold the table.
        figure: The PNG.

    Returns:
        Those that `write` would change.
    """
    runs = load()
    found = [page for page in pages if filled(page.read_text(encoding="utf-8"), runs) != page.read_text("utf-8")]
    return found if _digest_of(figure) == digest(runs) else [*found, figure]


def write(pages: Sequence[Path], figure: Path) -> None:
    """Write the table into the pages, draw the figure, and say which files changed.

    Args:
        pages: Pages that may hold the table.
        figure: The PNG.
    """
    runs = load()
    for file in stale(pages, figure):
        if file == figure:
            draw(runs, figure)
        else:
            file.write_text(filled(file.read_text(encoding="utf-8"), runs), encoding="utf-8")
        print(f"written: {file}")


def digest(runs: dict[str, list[Run]]) -> str:
    """What the figure carries to say which runs it shows: a SHA-256 in hexadecimal."""
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()


def _digest_of(file: Path) -> str | None:
    if not file.exists():
        return None
    with Image.open(file) as image:
        return image.info.get("Description")


def draw(runs: dict[str, list[Run]], file: Path) -> None:
    """Draw the coefficient of variation over the steps: of every arm, and by depth of that without the constraint.

    Args:
        runs: What `load` returned.
        file: The PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    whole, depths = figure.subplots(1, 2, sharey=True)
    for arm, of_seeds in runs.items():
        _curve(whole, of_seeds, "cov", NAMES[arm], *LOOKS[arm])
    for depth, look in zip(DEPTHS, DEPTH_LOOKS, strict=True):
        _curve(depths, runs["off"], f"routing/cov/{depth}", f"{depth} third of the layers", *look)
    bound = largest_possible(runs)
    for axes, title in ((whole, "all linears"), (depths, "no constraint, by depth")):
        axes.axhline(bound, color="black", linestyle="-.", linewidth=1)
        axes.annotate("one expert gets everything", (0, bound), xytext=(2, -11), textcoords="offset points", fontsize=8)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_ylim(0.05, 4)
        axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=1, fontsize=8)
    whole.set_ylabel("CoV of the experts' importance (logarithmic)")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None, "Description": digest(runs)})


def _curve(axes: Axes, of_seeds: list[Run], name: str, label: str, colour: str, dash: str, marker: str) -> None:
    """The mean over the seeds, and a band from the lowest to the highest."""
    steps = [entry["step"] for entry in of_seeds[0]["curve"]]
    by_step = list(zip(*([entry[name] for entry in run["curve"]] for run in of_seeds), strict=True))
    look = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "markevery": 3, "label": label}
    axes.plot(steps, [mean(values) for values in by_step], **look)
    axes.fill_between(steps, [min(v) for v in by_step], [max(v) for v in by_step], color=colour, alpha=0.2, linewidth=0)
