"""One run of one method, its result file, and the grid of runs of a scale.

Every run leaves one file, `results/SCALE/METHOD-lrRATE-seedSEED.json`, written when it ends. A grid makes the files
that are missing, seed by seed, so it resumes on any machine and a stop leaves complete seeds.
"""

from __future__ import annotations

import base64
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.methods import METHODS, apply_method, scaled_update, trainable_parameters
from experiments.train import Sample, train

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = Path(__file__).parent / "results"
SHARES: Final = (0.25, 0.5, 0.75)  # of the update, for the interpolation


@dataclass(frozen=True)
class Run:
    """What is trained, how fast, and with which random numbers."""

    method: str
    rate: float
    seed: int

    @property
    def file(self) -> str:
        """Name of its result file."""
        return f"{self.method}-lr{self.rate:g}-seed{self.seed}.json"


@dataclass(frozen=True)
class Plan:
    """The grid of a scale.

    Attributes:
        rates: Three learning rates for each kind of method; the first seed runs all of them.
        methods: Methods that run at both kept rates.
        variants: Methods that run at the higher kept rate only.
        seeds: How many seeds.
    """

    rates: Mapping[str, tuple[float, ...]]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: int


class Scale(Protocol):
    """What a scale provides.

    Attributes:
        name: Of its folder of results.
        plan: Its grid.
        checkpoints: Numbers of training tokens at which the model is measured; the last one ends the training.
        base_model: The base model, in eval mode.
        start: What `measure` gives for it.
    """

    name: str
    plan: Plan
    checkpoints: tuple[int, ...]
    base_model: Any
    start: Mapping[str, Any]

    def base(self) -> Any:
        """Return a new copy of the base model, in float32 and eval mode."""

    def samples(self, seed: int) -> Iterable[Sample]:
        """Return the training samples of a seed."""

    def measure(self, model: Any, final: bool) -> dict[str, Any]:
        """Measure knowledge and learning; `final`: on all items instead of the checkpoints' items."""

    def afterwards(self, model: Any, rate: float) -> dict[str, Any]:
        """Measure what changes the model, once everything else is measured."""

    def check(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Stop the grid if its results so far show that it cannot answer the question."""


def execute(run: Run, scale: Scale) -> dict[str, Any]:
    """Train and measure.

    Args:
        run: What to train.
        scale: On what.

    Returns:
        The content of the result file.
    """
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    model = apply_method(scale.base(), run.method).eval()
    points = [{"tokens": 0, **scale.start}]  # every method starts as the base model

    def measure(tokens: int) -> None:
        points.append({"tokens": tokens, **scale.measure(model, final=False)})

    routing = train(model, scale.samples(run.seed), run.rate, scale.checkpoints, measure)
    interpolated = []
    for share in SHARES:
        with scaled_update(model, scale.base_model.state_dict(), share):
            interpolated.append({"share": share, **scale.measure(model, final=False)})
    return {
        "scale": scale.name,
        **asdict(run),
        "trained_parameters": trainable_parameters(model),
        "checkpoints": points,
        "interpolated": interpolated,
        "final": scale.measure(model, final=True),
        **scale.afterwards(model, run.rate),
        **routing,
        "seconds": round(time.perf_counter() - start),
    }


def runs_of(plan: Plan, results: Sequence[Mapping[str, Any]]) -> list[Run]:
    """List the runs of a grid, seed by seed.

    The first seed runs every method at three rates. Of these the two are kept at which most is learnt, by the fall of
    the downstream loss at the last checkpoint: for full fine-tuning, and for LoRA and LoRAMoE together. Knowledge plays
    no part in the choice.

    Args:
        plan: The grid.
        results: The results so far.

    Returns:
        The runs; those of further seeds only once the first seed is complete.
    """
    pilot = [Run(name, rate, 0) for name in plan.methods for rate in plan.rates[kind_of(name)]]
    if {run.file for run in pilot} - {run_of(result).file for result in results}:
        return pilot
    rates = {kind: kept_rates(plan, results, kind) for kind in plan.rates}
    runs = list(pilot)
    for seed in range(plan.seeds):
        runs += [Run(name, rate, seed) for name in plan.methods for rate in rates[kind_of(name)]]
        runs += [Run(name, max(rates[kind_of(name)]), seed) for name in plan.variants]
    return list(dict.fromkeys(runs))


def kept_rates(plan: Plan, results: Sequence[Mapping[str, Any]], kind: str) -> tuple[float, ...]:
    """Return the two rates of a kind of method at which the first seed of LoRA and LoRAMoE, or full, learnt most."""
    names = [name for name in ("full", "lora", "loramoe") if name in plan.methods and kind_of(name) == kind]
    chosen = [result for result in results if result["seed"] == 0 and result["method"] in names]
    learnt = {
        rate: sum(learning(result)[-1] for result in chosen if result["rate"] == rate) for rate in plan.rates[kind]
    }
    return tuple(sorted(sorted(learnt, key=lambda rate: learnt[rate])[-2:]))


def kind_of(method: str) -> str:
    """Return the kind of a method in `Plan.rates`: `full` or `adapter`."""
    return "full" if METHODS[method].kind == "full" else "adapter"


def run_of(result: Mapping[str, Any]) -> Run:
    """Return the run of a result."""
    return Run(result["method"], result["rate"], result["seed"])


def learning(result: Mapping[str, Any]) -> list[float]:
    """Fall of the downstream loss since the start, in nats, at each checkpoint."""
    losses = [point["downstream_loss"] for point in result["checkpoints"]]
    return [losses[0] - loss for loss in losses]


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Read the result files of a folder; none if there is no such folder."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-seed*.json"))]


def work_through(scale: Scale, folder: Path, log: Callable[[str], None] = print) -> None:
    """Make the runs of a scale that are missing.

    Args:
        scale: The scale.
        folder: Of the result files.
        log: Called with one line a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    provenance = made_with()  # of the code that this process has loaded
    while True:
        results = load_results(folder)
        scale.check(results)
        runs = runs_of(scale.plan, results)
        missing = [run for run in runs if not (folder / run.file).exists()]
        if not missing:
            return
        result = execute(missing[0], scale)
        draft = folder / f"{missing[0].file}.tmp"
        draft.write_text(json.dumps(result | {"made_with": provenance}) + "\n", encoding="utf-8")
        draft.replace(folder / missing[0].file)
        log(f"{len(missing) - 1} runs left; {missing[0].file}: {result['seconds']} s")


def made_with() -> dict[str, str]:
    """Return what makes a result reproducible: commit, versions, processor."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    precision = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
    python = {"python": platform.python_version()}
    return {"commit": commit or "unknown", **python, **versions, "processor": processor(), "precision": precision}


def processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def write_halves(values: NDArray[np.float64]) -> str:
    """Write numbers as base64 of float16: a thousand of them in 2.7 kB."""
    return base64.b64encode(values.astype(np.float16).tobytes()).decode()


def read_halves(text: str) -> NDArray[np.float64]:
    """Read what `write_halves` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype=np.float16).astype(np.float64)
