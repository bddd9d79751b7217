"""Rows of a report are spread over the file, and each counts once: those without room for an answer not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramoe.data import DatasetError, stream_dataset, tokenise_dataset
from loramoe.report.rows import ReportRows


@pytest.fixture
def load(tiny_task: Any, tmp_path: Path) -> Any:
    """Rows of so many words each, as `stream_dataset` and `tokenise_dataset` give them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)

    def make(*lengths: int) -> tuple[Any, Any]:
        rows = [{"instruction": "w1 " * words, "input": "", "output": "w2", "task_type": 0} for words in lengths]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        given = (tmp_path / "rows.json", tokenizer)
        stored = (
            tokenise_dataset(*given, max_seq_length=10, cache_dir=tmp_path / "cache")[0] if min(lengths) < 8 else []
        )
        return stream_dataset(*given, max_seq_length=10)[0], stored

    return make


def test_a_stream_gives_the_rows_that_are_stored(load: Any):
    streamed, stored = load(1, 20, 2, 3, 20)
    rows = ReportRows(streamed)
    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in ReportRows(stored)]
    assert rows.left_out == 2
    assert rows.told() == "rows left out, as the prompt fills max_seq_length: 2"
    assert len(list(rows)) == 3
    assert rows.left_out == 2  # of one time through


@pytest.mark.parametrize(("most", "words"), [(None, [1, 2, 3, 4, 5]), (3, [1, 3, 5]), (9, [1, 2, 3, 4, 5]), (1, [1])])
def test_rows_are_evenly_spaced(load: Any, most: int | None, words: list[int]):
    for rows in load(1, 2, 3, 4, 5):
        chosen = ReportRows(rows, most)
        assert len(chosen) == len(words)
        assert [row["input_ids"].count(5) for row in chosen] == words
        assert chosen.told() == ""


def test_no_row_has_room(load: Any):
    rows = ReportRows(load(20, 30)[0])
    with pytest.raises(DatasetError, match="none of the 2 rows has room for an answer: their prompts fill max_seq_len"):
        list(rows)
