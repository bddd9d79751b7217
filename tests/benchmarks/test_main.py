"""One command runs every benchmark and then the report, which a quick run leaves alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import __main__ as command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    made: list[tuple[object, ...]] = []

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda device, quick: made.append((name, device, quick)))

    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=module))
    monkeypatch.setattr(command, "report", SimpleNamespace(main=lambda flags: made.append(("report", flags))))
    return made


@pytest.mark.parametrize(("named", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_every_benchmark_runs_and_then_the_report(calls: list, named: str, device: str) -> None:
    command.main([named])
    names = ("layer", "step", "decode", "packing", "live")
    assert calls == [*((f"benchmarks.{name}", device, False) for name in names), ("report", [])]


def test_a_quick_run_changes_no_page(calls: list) -> None:
    command.main(["cpu", "--quick"])
    assert len(calls) == 5
    assert all(quick for _, _, quick in calls)


@pytest.mark.parametrize(("flags", "rows"), [([], None), (["--rows", "10", "20"], [10, 20])])
def test_data_is_measured_alone(calls: list, flags: list, rows: list) -> None:
    command.main(["data", *flags])
    assert calls == [("benchmarks.data", rows, False), ("report", [])]
