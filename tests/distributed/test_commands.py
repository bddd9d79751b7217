"""The commands of docs/distributed.md for a machine without a GPU do what they say, in a copy of the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.distributed.conftest import ROOT, Finished, shell

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^nproc_per_node=2 engine=(\S*) output_dir=(\S+) (bash run_loramoe.sh .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So that nothing is written into the repository."""
    copy = tmp_path_factory.mktemp("checkout") / "LoRAMoE"
    ignored = shutil.ignore_patterns(".*", "output*", "models", "__pycache__", "tests", "benchmarks", "experiments")
    return Path(shutil.copytree(ROOT, copy, ignore=ignored))


@pytest.mark.skipif(not (ROOT / "data/tiny_llama/model.safetensors").is_file(), reason="data/tiny_llama is not there")
@pytest.mark.parametrize(("engine", "out", "command"), COMMANDS, ids=[out for _, out, _ in COMMANDS])
def test_a_command_trains(engine: str, out: str, command: str, checkout: Path, request: pytest.FixtureRequest) -> None:
    if engine != "ddp":
        request.getfixturevalue("zero")
    variables = {"nproc_per_node": 2, "engine": engine, "output_dir": out}
    shell(f"{command} --disable_tqdm true", checkout, variables)
    run = Finished(checkout / out)
    assert run.losses
    assert all(tensor.numel() for tensor in run.adapter().values())


def test_the_page_has_a_command_for_each_engine() -> None:
    assert [engine for engine, _, _ in COMMANDS] == ["ddp", "zero2", "zero3"]
