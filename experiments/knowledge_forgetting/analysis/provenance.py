"""Where the runs come from: what one must know to believe a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.knowledge_forgetting.analysis.results import Run
from experiments.knowledge_forgetting.analysis.style import model_of


@dataclass(frozen=True)
class Provenance:
    """Every value that occurs in the runs' files, sorted.

    Attributes:
        runs: How many there are, with the base's.
        seeds: Of the trained ones.
        hardware: The machines; with the precision of the computation, where the files tell it.
        versions: By name.
        model: The base model, for readers.
        base: Fingerprint of the base model's weights, the same for all runs.
        commits: Of this repository.
        dirty: How many runs were made while the repository differed from its commit.
        dates: The first and the last.
    """

    runs: int
    seeds: list[int]
    hardware: list[str]
    versions: dict[str, list[str]]
    model: str
    base: str
    commits: list[str]
    dirty: int
    dates: list[str]

    def line(self) -> str:
        """All of it in one line."""
        versions = ", ".join(f"{name} {' / '.join(of_name)}" for name, of_name in self.versions.items())
        changed = f" ({self.dirty} runs with uncommitted changes)" if self.dirty else ""
        return (
            f"{self.runs} runs, seeds {', '.join(map(str, self.seeds)) or 'none'}; {' / '.join(self.hardware)}, "
            f"one thread a run; {versions}; {' to '.join(self.dates)}; "
            f"base model: {self.model} (fingerprint {self.base[:12]}); "
            f"commit {', '.join(commit[:7] for commit in self.commits)}{changed}."
        )


def of(runs: Sequence[Run]) -> Provenance:
    """Collects where runs come from.

    Args:
        runs: At least one.

    Returns:
        What occurs.
    """
    dates = _values(runs, "date")
    versions = [run.provenance.get("versions", {}) for run in runs]
    return Provenance(
        runs=len(runs),
        seeds=sorted({run.seed for run in runs if run.arm != "base"}),
        hardware=sorted({_hardware(run) for run in runs}),
        versions={
            name: sorted({str(of_run[name]) for of_run in versions if name in of_run})
            for name in sorted({name for of_run in versions for name in of_run})
        },
        model=model_of(runs[0].scale),
        base=runs[0].provenance["base"],
        commits=_values(runs, "commit"),
        dirty=sum(run.provenance["dirty"] for run in runs),
        dates=sorted({*dates[:1], *dates[-1:]}),
    )


def _hardware(run: Run) -> str:
    told = [run.provenance.get("hardware"), run.provenance.get("precision")]
    return " in ".join(str(one) for one in told if one is not None)


def _values(runs: Sequence[Run], key: str) -> list[str]:
    return sorted({str(run.provenance[key]) for run in runs if key in run.provenance})
