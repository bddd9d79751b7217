"""Paths that flags and a DeepSpeed file name: below output_dir, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loramoe.training.errors import UsageError
from loramoe.training.paths import check_paths


def arguments(output_dir: Path, deepspeed: dict[str, Any] | None = None, **flags: Any) -> Any:
    """The few arguments that are looked at; DeepSpeed itself need not be installed."""
    given = {"output_dir": str(output_dir), "deepspeed": deepspeed, **flags}
    return SimpleNamespace(**given, hf_deepspeed_config=SimpleNamespace(config=deepspeed))


def monitor(name: str, **settings: Any) -> dict[str, Any]:
    return {name: {"enabled": True, **settings}}


def test_what_lies_below_output_dir_is_fine(tmp_path: Path):
    out = tmp_path / "out"
    check_paths(arguments(out))
    check_paths(arguments(out, logging_dir=None))
    check_paths(arguments(out, logging_dir=str(out / "runs" / ".." / "logs")))
    check_paths(arguments(out, {"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}))
    check_paths(arguments(out, monitor("tensorboard", output_path=str(out), job_name="today")))
    check_paths(arguments(out, {"flops_profiler": {"output_file": None}}))


def test_scratch_space_may_be_anywhere(tmp_path: Path):
    offload = {"offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme"}}
    check_paths(arguments(tmp_path / "out", {"zero_optimization": offload}))


def test_a_monitor_that_is_off_writes_nowhere(tmp_path: Path):
    check_paths(arguments(tmp_path, {"tensorboard": {"enabled": False}, "csv_monitor": {}}))


@pytest.mark.parametrize("path", ["../x", "/etc", "~/logs", "out/../../x", "{out}x"])
def test_a_logging_dir_outside(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = path.replace("{out}", str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"^logging_dir=.* lies outside output_dir=.*out \(it is /.*leave it out"):
        check_paths(arguments(tmp_path / "out", logging_dir=path))


@pytest.mark.parametrize("name", ["tensorboard", "csv_monitor"])
@pytest.mark.parametrize("settings", [{}, {"output_path": "/var/logs"}, {"job_name": "../../up"}])
def test_a_monitor_outside(name: str, settings: dict[str, str], tmp_path: Path):
    with pytest.raises(UsageError, match=f"^deepspeed: {name}.output_path=.* lies outside output_dir="):
        check_paths(arguments(tmp_path / "out", monitor(name, **settings)))


def test_a_job_name_that_leaves_its_folder(tmp_path: Path):
    with pytest.raises(UsageError, match=r"csv_monitor.output_path=.* lies outside"):
        check_paths(arguments(tmp_path, monitor("csv_monitor", output_path=str(tmp_path), job_name="../up")))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"flops_profiler": {"output_file": "/tmp/flops.txt"}}, "flops_profiler.output_file"),
        ({"nebula": {"persistent_storage_path": "/tmp"}}, "nebula.persistent_storage_path"),
        ({"autotuning": {"results_dir": "../results"}}, "autotuning.results_dir"),
    ],
)
def test_other_paths_of_deepspeed(config: dict[str, Any], name: str, tmp_path: Path):
    with pytest.raises(UsageError, match=f"^deepspeed: {name}=.* lies outside output_dir="):
        check_paths(arguments(tmp_path / "out", config))


def test_links_are_followed(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"logging_dir=.*out/logs lies outside .* \(it is .*elsewhere\)"):
        check_paths(arguments(tmp_path / "out", logging_dir=str(tmp_path / "out" / "logs")))
    (tmp_path / "link").symlink_to(tmp_path / "out")
    check_paths(arguments(tmp_path / "link", logging_dir=str(tmp_path / "out" / "runs")))


@pytest.mark.parametrize("path", ["a\0b", "~nobody_of_this_name/logs"])
def test_what_is_no_path(path: str, tmp_path: Path):
    with pytest.raises(UsageError, match=r"logging_dir=.* is no path that can be written to .*Correct it"):
        check_paths(arguments(tmp_path, logging_dir=path))
