"""Files of questions: one task each, named so that they can be told apart, refused whole where a row is broken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from loramoe.data import DatasetError
from loramoe.evaluation import read_task, read_tasks
from loramoe.evaluation.tasks import short_names


def test_a_file_is_a_task(write, questions) -> None:
    file = write(questions, "facts.json")
    task = read_task(file)
    assert (task.name, task.file, len(task.examples)) == ("facts", file, len(questions))
    assert task.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [example.where for example in task.examples[:2]] == ["row 1", "row 2"]
    assert task.examples[1].instruction == questions[1]["prompt"]


def test_a_folder_is_as_many_tasks_as_it_has_files(write, questions, tmp_path: Path) -> None:
    write(questions, "many/a.json")
    write(questions, "many/b.json")
    other = write(questions, "c.json")
    assert [task.name for task in read_tasks([tmp_path / "many", other])] == ["a", "b", "c"]


def test_names_tell_paths_apart() -> None:
    assert short_names([Path("x/a.json"), Path("y/a.jsonl"), Path("y/b.v2.json")]) == ["x/a.json", "y/a.jsonl", "b.v2"]
    assert short_names([Path("one/adapter"), Path("two/adapter"), Path("r=0.5")]) == [
        "one/adapter",
        "two/adapter",
        "r=0.5",
    ]
    with pytest.raises(
        ValueError, match=r"each file and adapter can be given once; got x/a.json twice. Leave one out."
    ):
        short_names([Path("x/a.json"), Path("x/a.json")])


def test_broken_rows_are_named(write, questions) -> None:
    questions[3] = {**questions[3], "choices": ["no", "never"]}
    questions[4] = {"prompt": "no answer"}
    with pytest.raises(DatasetError, match=r"(?s)2 faults in the data:.*row 4, field 'choices'.*row 5, field 'answer'"):
        read_task(write(questions))
    with pytest.raises(DatasetError, match="does not exist"):
        read_tasks(["nowhere.json"])
