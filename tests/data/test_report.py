"""Reports: parts add up to the whole, and come back from a file as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loramoe.data.report import StreamReport, TokeniseReport, dumps, load, total

COUNTS = st.integers(0, 10**9)
REPORTS = st.builds(
    TokeniseReport,
    *[COUNTS] * 6,
    task_types=st.dictionaries(st.integers(-3, 3), st.integers(1, 10**9), max_size=4),
    max_seq_length=st.just(64),
)


@given(st.lists(REPORTS, max_size=5))
def test_parts_add_up(parts):
    whole = total(parts, 64)
    for name in ("rows", "kept", "cut", "dropped", "special", "tokens"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)
    for task_type in range(-3, 4):
        assert whole.task_types.get(task_type, 0) == sum(part.task_types.get(task_type, 0) for part in parts)
    assert list(whole.task_types) == sorted(whole.task_types)


@given(report=REPORTS)
def test_a_report_survives_its_file(tmp_path_factory, report):
    file = tmp_path_factory.mktemp("report") / "report.json"
    file.write_bytes(dumps(report))
    assert load(file) == report


def test_a_stream_says_what_it_does_not_know():
    assert str(StreamReport(1234, {1: 34, 0: 1200}, 64)) == (
        "rows read: 1,234 (type 0: 1,200, type 1: 34)\n"
        "tokenised when they are needed, so that how many are longer than max_seq_length=64 is not known yet"
    )
