"""Whatever a data file holds, it is read, or refused by DatasetError with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loramoe.data import DatasetError, read_samples
from tests.fuzz.strategies import SCALARS, VALUES, as_json, broken, drawn, spoilt, times, told

ROW = {"instruction": "what is it", "input": "this", "output": "it", "task_type": 1}
FIELDS = {"instruction": str, "input": str, "output": str, "task_type": int}


@st.composite
def files(draw: Any) -> tuple[str, bytes]:
    """Suffix and content of a data file."""
    rows = draw(st.lists(st.one_of(st.just(ROW), spoilt(ROW, st.text(max_size=4)), VALUES), max_size=4))
    suffix = draw(st.sampled_from([".json", ".jsonl"]))
    if suffix == ".jsonl":
        content = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(map(as_json, rows))
    else:
        content = as_json(draw(st.sampled_from([rows, {"data": rows}]) | SCALARS))
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b" \n"]))
    return suffix, start + draw(broken(content))


def read(file: Path, task_types: list[int] | None) -> None:
    try:
        samples = list(read_samples(file, task_types))
    except DatasetError as error:
        message = told(error)
        assert file.name in message
        return
    assert samples
    for sample in samples:
        assert {name: type(getattr(sample, name)) for name in FIELDS} == FIELDS
        assert sample.instruction.strip()
        assert sample.output.strip()
        assert task_types is None or sample.task_type in task_types
        "".join(turn["content"] for turn in sample.messages).encode()


@times(fast=300, slow=4000)
def test_data_files(count: int, tmp_path: Path) -> None:
    @drawn(count)
    @given(files(), st.sampled_from([None, [0, 1]]))
    def holds(drawn_file: tuple[str, bytes], task_types: list[int] | None) -> None:
        suffix, content = drawn_file
        file = tmp_path / f"data{suffix}"
        file.write_bytes(content)
        read(file, task_types)

    holds()


@times(fast=50, slow=500)
def test_names_of_data_files(count: int, tmp_path: Path) -> None:
    """A folder as file, no such file, a path that is none."""

    @drawn(count)
    @given(st.text(max_size=6) | st.sampled_from(["", ".", "a\0b", "x" * 300, "~", "~x/y", "no.json", "dir.json"]))
    def holds(name: str) -> None:
        try:
            for _ in read_samples(f"{tmp_path}/{name}"):
                raise AssertionError(f"read a row from {name!r}")
        except DatasetError as error:
            told(error)

    (tmp_path / "dir.json").mkdir()
    holds()
