"""Targets of coverage-guided fuzzing: readers of files, which must refuse in their own words or read.

    python tests/fuzz/atheris_targets.py rows -runs=20000 -seed=1

Needs `pip install atheris`. `test_atheris.py` runs each of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

# What is instrumented is what decides: our readers, and the parsers in Python below them.
with atheris.instrument_imports(include=["loramoe", "json", "yaml"]):
    from loramoe.data import DatasetError, read_samples

Target = Callable[[bytes], None]


def must_name(name: str, error: Exception) -> None:
    """An error has to say which file it is about."""
    if name not in str(error):
        raise AssertionError(f"{name!r} is not named") from error


def rows(folder: Path) -> Target:
    """Data files: the first bit says whether .json or .jsonl."""

    def read(content: bytes) -> None:
        file = folder / ("rows.jsonl" if content[:1] > b"\x7f" else "rows.json")
        file.write_bytes(content[1:])
        try:
            assert list(read_samples(file))
        except DatasetError as error:
            must_name(file.name, error)

    return read


TARGETS = {target.__name__: target for target in (rows,)}

# To begin with: valid files, from which libFuzzer makes others.
SEEDS = {
    "rows": [
        b'\xff{"instruction": "a", "input": "", "output": "b", "task_type": 0}\n',
        b'\x00[{"instruction": "a", "input": "", "output": "b", "task_type": 1}]',
    ],
}


def main() -> None:
    """Fuzzes the target of the first argument; further ones are libFuzzer's."""
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]):
            (corpus / str(number)).write_bytes(seed)
        target = TARGETS[name](Path(folder))
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
