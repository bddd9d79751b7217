"""Makes the runs of a scale that are not there yet, then its tables and figures.

python -m experiments.knowledge_forgetting tiny [--workers 2] [--study frontier] [--arm lora_mlp] [--seeds 0]
python -m experiments.knowledge_forgetting real --data FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.knowledge_forgetting.analysis.remake import remake
from experiments.knowledge_forgetting.arms import ARMS
from experiments.knowledge_forgetting.grid import SEEDS, STUDIES, work_through
from experiments.knowledge_forgetting.scale import Scale
from loramoe.training.files import write_json

RESULTS = Path(__file__).parent / "results"


def make_scale(name: str, data: Path | None) -> Scale:
    """The scale of a name.

    Args:
        name: `tiny` or `real`.
        data: Folder of the data sets; `real` needs it.

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

    return RealScale(data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the runs, and the tables and figures of all that are there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.knowledge_forgetting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale", choices=["tiny", "real"])
    parser.add_argument("--data", type=Path, help="folder of the real scale's data sets")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--study", choices=list(STUDIES), action="append", help="default: all of them")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="default: all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)

    scale = make_scale(options.scale, options.data)
    folder = options.out / scale.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sets.json", {"knowledge": scale.knowledge, "downstream": scale.downstream})
    studies = [STUDIES[name] for name in options.study or STUDIES]
    settings = [one for study in studies for one in study(scale, options.seeds)]
    work_through([one for one in settings if one.arm in (options.arm or ARMS)], scale, folder, options.workers)
    remake(folder)


if __name__ == "__main__":
    main()
