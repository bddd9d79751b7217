"""Reading the folder of data."""

from __future__ import annotations

import pytest

from experiments.knowledge_forgetting.real.files import read, shuffled
from tests.experiments.knowledge_forgetting.real.conftest import write


def test_read(tmp_path):
    write(tmp_path / "a.json", {"data": [1]})
    write(tmp_path / "b.jsonl", [{"x": 1}, {"x": 2}])
    assert read(tmp_path, "a.json") == {"data": [1]}
    assert read(tmp_path, "b.jsonl") == [{"x": 1}, {"x": 2}]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected trex/x.json in the data folder, got .* Pass --data"):
        read(tmp_path, "trex/x.json")


def test_shuffled_depends_on_the_seed_alone():
    values = list(range(20))
    assert shuffled(values, "a", 1) == shuffled(values, "a", 1) != shuffled(values, "a", 2)
    assert sorted(shuffled(values, 0)) == values
