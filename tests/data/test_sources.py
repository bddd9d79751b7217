"""Sources: a file of data sets says what it means, and a path finds its files."""

from __future__ import annotations

import json

import pytest

from loramoe.data import DataConfig, DatasetError, DataSource, data_files, read_data_config

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
    assert read_data_config(tmp_path / "data.json") == expected


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
        ("datasets: [{path: 3}]", ["path", "got 3 (int)"]),
        ("datasets: [{path: a, task_type: '1'}]", ["task_type", "got '1' (str)"]),
        ("datasets: [{path: a, weight: 0}]", ["weight", "got 0 (int)"]),
        ("datasets: [{path: a, weight: half}]", ["weight", "got 'half' (str)"]),
        ("datasets: [{path: a, max_samples: 1.5}]", ["max_samples", "got 1.5 (float)"]),
        ("datasets: [{path: a, format: openai}]", ["format", "sharegpt", "'openai'"]),
        ("datasets: [{path: a, columns: [q]}]", ["columns", "['q']"]),
        ("datasets: [{path: a, weight: 1}, {path: b}]", ["data set b", "weight"]),
        ("datasets: [a]\ntype_names: {0: false}", ["type_names", "False (bool)"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, words):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DatasetError) as caught:
        read_data_config(tmp_path / "data.yaml")
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_file_of_data_sets_that_is_not_there(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.yaml"):
        read_data_config(tmp_path / "nowhere.yaml")


def test_a_folder_is_read_whole_in_the_order_of_names(write, row, tmp_path):
    for name in ("b.json", "a.jsonl.gz", "c.parquet", "D.JSONL", ".hidden.json"):
        write(name, [row()])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "figures").mkdir()
    assert [file.name for file in data_files(tmp_path)] == ["D.JSONL", "a.jsonl.gz", "b.json", "c.parquet"]


def test_the_home_directory_is_known(write, row, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write("rows.json", [row()])
    assert data_files("~/rows.json") == [file]


@pytest.mark.parametrize("path", ["nowhere", "nowhere.json", "/no/where"])
def test_a_path_that_is_not_there(path, run):
    with pytest.raises(DatasetError, match="does not exist"):
        run(path)


def test_folders_that_are_refused(write, row, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"holds none of"):
        data_files(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"'\.txt'"):
        data_files(tmp_path / "empty/notes.txt")
    write("both/a.json", [row()])
    write("both/test/a.json", [row()])
    with pytest.raises(DatasetError, match="subfolder 'test'"):
        data_files(tmp_path / "both")
