"""Whatever a data file holds, it is read, or refused by DatasetError with its name.

CHAOS_SEED decides the thousands of inputs under the mark `slow`; hypothesis prints how to draw a failure again.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from loramoe.data import DatasetError, read_samples

ROW = {"instruction": "what is it", "input": "this", "output": "it", "task_type": 1}
NUMBERS = [0, 1, -1, 2**31, -(2**64), 10**400, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf]
TEXTS = ["", " ", "0", "1,0", "true", "a\0b", "\ud800", "[", "é" * 300]
SCALARS = st.none() | st.booleans() | st.sampled_from([*NUMBERS, *TEXTS]) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt_rows(draw: Any) -> dict[str, Any]:
    """A good row with fields left out, replaced by anything, or added."""
    row = {name: value for name, value in ROW.items() if draw(st.integers(0, 9))}
    names = st.sampled_from([*ROW, "messages", "conversations", "system"]) | st.text(max_size=4)
    return row | draw(st.dictionaries(names, VALUES, max_size=2))


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """Suffix and content of a data file: whole, cut off, or with bytes flipped or put in."""
    rows = draw(st.lists(st.just(ROW) | spoilt_rows() | VALUES, max_size=4))
    suffix = draw(st.sampled_from([".json", ".jsonl", ".csv", ".parquet", ".jsonl.gz"]))
    lines = "\n".join(map(json.dumps, rows))
    content = (json.dumps(draw(st.sampled_from([rows, {"data": rows}]))) if suffix == ".json" else lines).encode()
    at = draw(st.integers(0, len(content)))
    content = content[:at] + draw(st.binary(max_size=8)) + content[draw(st.sampled_from([at, at + 1, len(content)])) :]
    return suffix, draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b" \n"])) + content


@pytest.mark.parametrize("count", [200, pytest.param(4000, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_data_files(count: int, tmp_path: Path) -> None:
    @seed(int(os.environ["CHAOS_SEED"]))
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(files(), st.sampled_from([None, [0, 1]]))
    def is_read_or_refused(drawn: tuple[str, bytes], task_types: list[int] | None) -> None:
        file = tmp_path / f"data{drawn[0]}"
        file.write_bytes(drawn[1])
        samples, message = [], ""
        try:
            samples = list(read_samples(file, task_types))
        except DatasetError as error:
            message = str(error)
        assert samples or file.name in message
        for sample in samples:
            assert type(sample.task_type) is int
            assert task_types is None or sample.task_type in task_types
            assert all(turn["content"].strip() for turn in sample.messages if turn["role"] != "system")
            json.dumps(sample.messages, ensure_ascii=False).encode()

    is_read_or_refused()


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "~x/y", "dir.json"])
def test_names_that_are_no_data_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "dir.json").mkdir()
    with pytest.raises(DatasetError):
        list(read_samples(f"{tmp_path}/{name}"))
