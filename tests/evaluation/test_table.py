"""The table: a line for each figure, columns in line, and nothing that breaks Markdown."""

from __future__ import annotations

import re

from loramoe.evaluation import Estimate, Line, markdown

SURE = Line(
    "facts",
    None,
    "recall",
    1200,
    3,
    {"base": Estimate(0.5, 0.25, 0.75), "a": Estimate(1, 1, 1)},
    {"a": Estimate(0.5, 0.25, 0.75)},
)
OF_TYPE = Line(
    "a|b",
    1,
    "perplexity",
    7,
    3,
    {"base": Estimate(123.456, 99, 1e6), "a": Estimate(1, 1, 1)},
    {"a": Estimate(-122.456, -1e6, 0)},
)


def test_table() -> None:
    drawn = markdown([SURE, OF_TYPE], ["base", "a"])
    lines = drawn.splitlines()
    assert [re.sub(" +", " ", line) for line in (lines[0], *lines[2:4])] == [
        "| task | type | questions | metric | base | a |",
        "| facts | all | 1,200 (3 too long) | recall | 0.5 [0.25, 0.75] | 1, +0.5 [+0.25, +0.75] |",
        r"| a\|b | 1 | 7 | perplexity | 123.5 [99, 1e+06] | 1, -122 [-1e+06, +0] |",
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert set(lines[1]) == {"|", "-", " "}
    assert "95 % intervals" in drawn
