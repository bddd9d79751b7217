"""pyproject.toml, the requirement files and environment.yml say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def lines(name: str) -> list[str]:
    stripped = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in stripped if line]


def pins(name: str, python: str) -> dict[str, str]:
    """Version of each package that a requirement file has for a Python."""
    found = {}
    for line in lines(name):
        if line.startswith("-r "):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (pin,) = requirement.specifier
            assert pin.operator == "==", f"{line} is not pinned"
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def ranges(*extras: str) -> dict[str, SpecifierSet]:
    wanted = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, wanted)}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("file", "extras"), [("requirements.txt", ("train", "gguf")), ("requirements-dev.txt", ("dev", "eval"))]
)
def test_pins_are_within_the_ranges_and_nothing_is_missing(file: str, extras: tuple[str, ...], python: str):
    pinned, wanted = pins(file, python), ranges(*extras)
    if file == "requirements-dev.txt":
        wanted = {name: spec for name, spec in wanted.items() if name not in ranges()}
    assert pinned.keys() >= wanted.keys()
    outside = {name: pinned[name] for name, spec in wanted.items() if not spec.contains(pinned[name])}
    assert not outside


def test_the_oldest_versions_are_those_that_the_ranges_begin_with():
    oldest = pins("requirements-oldest.txt", "3.11")
    for name in ("transformers", "peft"):
        (least,) = [spec.version for spec in ranges()[name] if spec.operator == ">="]
        assert Requirement(f"{name}=={least}.*").specifier.contains(oldest[name])
    assert all(spec.contains(oldest[name]) for name, spec in ranges("train").items() if name in oldest)


@pytest.mark.parametrize("package", ["torch", "peft", "transformers"])
def test_the_oldest_versions_promised_are_those_that_ci_installs(package: str):
    promised = next(each for each in PROJECT["dependencies"] if each.startswith(f"{package}>="))
    assert Version(pins("requirements-oldest.txt", "3.11")[package]) == Version(promised.removeprefix(f"{package}>="))


def test_conda_installs_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(line for line in environment["dependencies"] if str(line).startswith("python "))
    allowed = SpecifierSet(python.removeprefix("python ").strip())
    assert all(allowed.contains(version) for version in PYTHONS)
    assert not allowed.contains("3.9")
    assert {"pip": ["-r requirements.txt"]} in environment["dependencies"]
    assert PROJECT["requires-python"] == ">=3.10"


def test_the_files_include_one_another():
    """So that pip keeps torch, transformers and peft at their pins, whatever the engines ask for."""
    assert "-r requirements.txt" in lines("requirements-dev.txt")
    assert "-r requirements.txt" in lines("requirements-deepspeed.txt")
    assert "-r requirements-dev.txt" in lines("requirements-engines.txt")


def test_markers_cover_every_python_once():
    for file in ("requirements.txt", "requirements-dev.txt"):
        names = [Requirement(line).name for line in lines(file) if not line.startswith("-r")]
        for name in {name for name in names if names.count(name) > 1}:
            markers = [Requirement(line).marker for line in lines(file) if re.match(rf"{name}\b", line)]
            for python in PYTHONS:
                assert sum(Marker(str(m)).evaluate({"python_version": python}) for m in markers) == 1


def test_the_deepspeed_that_the_launcher_installs_is_the_one_that_is_tested():
    installed = pins("requirements-deepspeed.txt", "3.11")
    assert installed.items() <= pins("requirements-engines.txt", "3.11").items()
    assert "deepspeed" in installed


def test_the_engines_are_pinned_within_their_ranges():
    pinned = pins("requirements-engines.txt", "3.11")
    assert all(ranges(name)[name].contains(pinned[name]) for name in ("deepspeed", "wandb"))
