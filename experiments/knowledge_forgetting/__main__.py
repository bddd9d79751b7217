"""Makes the runs of a scale that are not there yet, then its tables and figures.

python -m experiments.knowledge_forgetting tiny [--workers 2] [--study frontier] [--arm lora_mlp] [--seeds 0]
python -m experiments.knowledge_forgetting real --data FOLDER [--float32] [--rows 200 2000] [--rates 0.001]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.knowledge_forgetting.analysis.remake import remake
from experiments.knowledge_forgetting.arms import ARMS
from experiments.knowledge_forgetting.grid import STUDIES, base_run, work_through
from experiments.knowledge_forgetting.processor import warning
from experiments.knowledge_forgetting.run import Settings
from experiments.knowledge_forgetting.scale import Scale
from loramoe.utils import write_json

RESULTS = Path(__file__).parent / "results"


def make_scale(name: str, data: Path | None, size: str) -> Scale:
    """The scale of a name.

    Args:
        name: `tiny` or `real`.
        data: Folder of the data sets; `real` needs it.
        size: How many items and rows the real scale takes: `cpu` or `gpu`.

    Returns:
        The scale.

    Raises:
        ValueError: If `real` is asked for without data.
    """
    if name == "tiny":
        from experiments.knowledge_forgetting.tiny.scale import TinyScale

        return TinyScale()
    if data is None:
        raise ValueError("the real scale reads data sets that are not ours to give. Say --data FOLDER; see README.md.")
    from experiments.knowledge_forgetting.real.scale import RealScale

    return RealScale(data, size=size)  # type: ignore[arg-type]  # argparse allows no other


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the runs, and the tables and figures of all that are there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.knowledge_forgetting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale", choices=["tiny", "real"])
    parser.add_argument("--data", type=Path, help="folder of the real scale's data sets")
    parser.add_argument(
        "--size", choices=["cpu", "gpu"], default="cpu", help="of the real scale's sets of items and rows"
    )
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--study", choices=list(STUDIES), action="append", help="default: all of them")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of each study")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of rows; default: those of each study")
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates; default: those of each study")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument(
        "--again", action="store_true", help="in a folder SCALE_again: what was published, repeated from the start"
    )
    parser.add_argument(
        "--float32", action="store_true", help="without bfloat16, in a folder SCALE_float32; for processors without it"
    )
    options = parser.parse_args(arguments)

    scale = make_scale(options.scale, options.data, options.size)
    if options.float32:
        without_bfloat16(scale)
    folder = options.out / f"{scale.name}{'_float32' * options.float32}{'_again' * options.again}"
    slow = warning(scale.bf16)
    if slow:
        print(slow, file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"knowledge": scale.knowledge, "downstream": scale.downstream, "chance": scale.chance}
    write_json(folder / "sets.json", sets)
    try:
        runs = wanted(scale, options.study, options.arm, options.seeds, options.rows, options.rates)
        work_through(runs, scale, folder, options.workers)
    finally:
        if (folder / f"{base_run(scale).name}.json").is_file():
            remake(folder)


def wanted(
    scale: Scale,
    studies: Sequence[str] | None,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    rows: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
) -> list[Settings]:
    """The runs that the flags ask for, and always the base, to which all are compared.

    Raises:
        ValueError: If rows or learning rates are asked for that no run has which the other flags leave.
    """
    settings = [
        one for name in studies or STUDIES for one in (STUDIES[name](scale, seeds) if seeds else STUDIES[name](scale))
    ]
    chosen = [one for one in settings if one.arm in (arms or ARMS)]
    chosen = _only(chosen, "--rows", lambda one: one.rows, rows)
    return [base_run(scale), *_only(chosen, "--rates", lambda one: one.learning_rate, rates)]


def _only(
    runs: list[Settings], flag: str, value_of: Callable[[Settings], float], asked: Sequence[float] | None
) -> list[Settings]:
    if asked is None:
        return runs
    known = sorted({value_of(one) for one in runs})
    unknown = sorted(set(asked) - set(known))
    if unknown:
        told = ", ".join(f"{value:g}" for value in known)
        raise ValueError(f"{flag} {unknown[0]:g}: none of the runs that are asked for has it. Take of {told}.")
    return [one for one in runs if value_of(one) in asked]


def without_bfloat16(scale: Scale) -> None:
    """Has a scale compute in float32.

    Raises:
        ValueError: If it does so anyway.
    """
    if not scale.bf16:
        raise ValueError(f"--float32: the scale {scale.name} computes in float32 anyway. Leave the flag out.")
    scale.bf16 = False


if __name__ == "__main__":
    main()
