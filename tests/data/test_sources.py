"""Sources: a file of data sets says what it means, and a path finds its files."""

from __future__ import annotations

import json

import pytest

from loramoe.data import DataConfig, DatasetError, DataSource, data_files, read_data_config
from loramoe.utils import UsageError

EXAMPLE = """
datasets:
  - {path: tatsu-lab/alpaca, task_type: 0, weight: 0.7}
  - {path: my/questions.jsonl, format: messages, task_type: 1, weight: 3e-1, max_samples: 20000}
  - {path: more.csv, weight: 1, columns: {instruction: question}}
validation:
  - my/held_out.jsonl
type_names: {0: tasks, 1: knowledge}
"""


def test_an_example(tmp_path):
    (tmp_path / "data.yaml").write_text(EXAMPLE)
    assert read_data_config(tmp_path / "data.yaml") == DataConfig(
        (
            DataSource("tatsu-lab/alpaca", task_type=0, weight=0.7),
            DataSource("my/questions.jsonl", format="messages", task_type=1, weight=0.3, max_samples=20_000),
            DataSource("more.csv", weight=1, columns={"instruction": "question"}),
        ),
        (DataSource("my/held_out.jsonl"),),
        {0: "tasks", 1: "knowledge"},
    )


def test_json_is_read_too(tmp_path):
    content = {"datasets": [{"path": "a.json", "default_task_type": 1}], "type_names": {"1": "knowledge"}}
    (tmp_path / "data.json").write_text(json.dumps(content))
    expected = DataConfig((DataSource("a.json", default_task_type=1),), (), {1: "knowledge"})
    assert read_data_config(tmp_path / "data.json") == read_data_config(content) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("datasets: [{path: a, wieght: 1}]", ["'wieght'", "'weight'", "entry 1"]),
        ("dataset: [{path: a}]", ["'dataset'", "'datasets'"]),
        ("datasets: [{path: a, columns: {instrution: q}}]", ["'instrution'", "'instruction'"]),
        ("datasets: [{task_type: 1}]", ["entry 1: expected a path"]),
        ("[a]", ["expected the keys"]),
        ("datasets: a\ntype_names: [b]", ["expected the keys"]),
        ("validation: [a]", ["datasets"]),
        ("datasets: [a", ["YAML"]),
        ("datasets: [{path: a, task_type: '1'}]", ["task_type", "got '1' (str)"]),
        ("datasets: [{path: a, weight: 0}]", ["weight", "got 0 (int)"]),
        ("datasets: [{path: a, max_samples: 1.5}]", ["max_samples", "got 1.5 (float)"]),
        ("datasets: [{path: a, format: openai}]", ["format", "sharegpt", "'openai'"]),
        ("datasets: [{path: a, weight: 1}, {path: b}]", ["data set b", "weight"]),
        ("datasets: [a]\ntype_names: {tasks: 0}", ["type_names", "'tasks' (str)"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, words):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(UsageError) as caught:
        read_data_config(tmp_path / "data.yaml")
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_file_of_data_sets_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        read_data_config(tmp_path / "nowhere.yaml")


def test_a_folder_is_read_in_the_order_of_names_without_its_subfolders(write, row, tmp_path, monkeypatch):
    for name in ("b.json", "a.jsonl.gz", "c.parquet", "D.JSONL", ".hidden.json", "test/a.json"):
        write(f"rows/{name}", [row()])
    (tmp_path / "rows/README.md").write_text("not data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [file.name for file in data_files("~/rows")] == ["D.JSONL", "a.jsonl.gz", "b.json", "c.parquet"]


def test_paths_that_are_refused(run, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path, words in (("nowhere", "does not exist"), (tmp_path, "holds none of"), (tmp_path / "notes.txt", "'.txt'")):
        with pytest.raises(DatasetError, match=words):
            run(path)
