"""Many short rows: how fast they are read, checked and tokenised, and that memory does not grow with their number.

Every measurement is a process of its own, which tells of its memory twice. *Resident* is what the kernel counts as the
process's peak; in it are pages of files, such as libraries and the finished dataset, which the kernel may drop at any
time. *Anonymous* is what the process has taken for itself, looked at every few milliseconds.

python -m benchmarks data                        # 100,000, 300,000 and a million rows: some minutes
python -m benchmarks data --rows 5000000         # other numbers
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

from tqdm import tqdm

from benchmarks import harness

ROWS = (100_000, 300_000, 1_000_000)
QUICK = (1_000,)
FORMATS = ("jsonl", "json")
JOBS = ("tokenise", "stream")
MAX_SEQ_LENGTH = 256
SAMPLED_EVERY_SECONDS = 0.02


def main(rows: Sequence[int] | None = None, quick: bool = False) -> None:
    """Measure every job on every format and number of rows, and write the results.

    Args:
        rows: Numbers of rows; None takes those of the page.
        quick: Whether to take tiny numbers, to see that the code runs.
    """
    harness.start("cpu")
    numbers = QUICK if quick else rows or ROWS
    plan = [(number, suffix, job) for number in numbers for suffix in FORMATS for job in JOBS]
    cells = [measure(*one) for one in tqdm(plan, desc="data", unit="run")]
    body = {"quick": quick, "max_seq_length": MAX_SEQ_LENGTH, "cells": cells}
    print(f"written: {harness.write_result('data', 'cpu', body)}")


def measure(rows: int, suffix: str, job: str) -> dict[str, Any]:
    """Let a new process do a job on a file of rows that is made for it.

    Args:
        rows: Their number.
        suffix: "jsonl" or "json".
        job: "tokenise" or "stream".

    Returns:
        What the process found, with rows and bytes of the file.

    Raises:
        RuntimeError: If the process fails, or has another number of rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = write_rows(Path(folder) / f"rows.{suffix}", rows)
        command = [sys.executable, "-m", "benchmarks.data", job, str(file)]
        done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{job} of {rows:,} rows failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        if found.pop("rows") != rows:
            raise RuntimeError(f"{job} lost rows of {rows:,}.")
        return {"rows": rows, "format": suffix, "job": job, "file_bytes": file.stat().st_size, **found}


def write_rows(file: Path, rows: int) -> Path:
    """Write a file of short rows, all different.

    Args:
        file: The file, of a name that says the format.
        rows: Their number.

    Returns:
        The file.
    """
    begin, between, end = ("[\n", ",\n", "\n]\n") if file.suffix == ".json" else ("", "\n", "\n")
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            stream.write((between if number else begin) + json.dumps(row(number)))
        stream.write(end)
    return file


def row(number: int) -> dict[str, Any]:
    """A question of knowledge or a sentence to judge, by turns."""
    if number % 2:
        question = f"Which city does person {number} come from?"
        return {"instruction": question, "input": "", "output": f"Tarvesh {number % 97}", "task_type": 1}
    text = f"Room {number} was unpleasant and the singer was nasty."
    judge = "Is this review positive or negative?"
    return {"instruction": judge, "input": text, "output": "negative", "task_type": 0}


# --- in the process that is measured ----------------------------------------------------------------------------------


def work(job: str, file: Path) -> dict[str, Any]:
    """Do a job in this process, and look at its memory meanwhile.

    Args:
        job: "tokenise" or "stream".
        file: The file of rows; what is made is left beside it.

    Returns:
        Rows, seconds, and MiB of memory before and at the peak.
    """
    import datasets  # noqa: F401  # what is imported counts as being there before
    from transformers import AutoTokenizer

    from loramoe.data import DataConfig, DataSource, load_splits, tokenise_dataset

    tokenizer = AutoTokenizer.from_pretrained(harness.ROOT / "data/tiny_llama")
    tokenizer("warm", return_attention_mask=False)
    before = {"resident": status("VmRSS"), "anonymous": status("RssAnon")}
    with Watch() as watch:
        began = perf_counter()
        if job == "tokenise":
            options = {"max_seq_length": MAX_SEQ_LENGTH, "cache_dir": file.parent / "cache"}
            _, report = tokenise_dataset(file, tokenizer, **options)
        else:
            config = DataConfig((DataSource(str(file)),))
            splits = load_splits(tokenizer, config, max_seq_length=MAX_SEQ_LENGTH, streaming=True)
            report = splits.report
        seconds = perf_counter() - began
    # Not ru_maxrss, in which a new process inherits the peak of the one that started it.
    peak = {"resident": status("VmHWM"), "anonymous": watch.peak}
    return {"rows": report.samples, "seconds": seconds, "before_MiB": before, "peak_MiB": peak}


def status(name: str) -> float:
    """A line of /proc/self/status.

    Args:
        name: `VmRSS`, `VmHWM`, `RssAnon` or another figure in kB.

    Returns:
        MiB.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


class Watch:
    """Looks at the anonymous memory of this process as long as it is entered.

    Attributes:
        peak: The most that was seen, in MiB.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, status("RssAnon"))
            if self._stop.wait(SAMPLED_EVERY_SECONDS):
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Do one job in this process; `python -m benchmarks data` starts it.")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("file", type=Path)
    flags = parser.parse_args()
    print(json.dumps(work(flags.job, flags.file)))
