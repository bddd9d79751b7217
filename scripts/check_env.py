"""Tells, in a fraction of a second, whether the running Python has what pyproject.toml asks for.

    python scripts/check_env.py train dev

Prints each requirement that is not met and exits with 1 if there is one. Written to run on any Python 3.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main():
    """Checks the project's dependencies and those of the extras that the command line names."""
    if sys.version_info < (3, 10):  # noqa: UP036  # older ones run this too, to learn that they are too old
        sys.exit("Python 3.10 or newer is needed; this is " + sys.version.split()[0])
    try:
        from packaging.requirements import Requirement
    except ImportError:
        sys.exit("missing: packaging")
    requirements = [Requirement(line) for line in _required(sys.argv[1:])]
    missing = [str(wanted) for wanted in requirements if not _installed(wanted)]
    if missing:
        sys.exit("missing: " + ", ".join(missing))


def _required(extras):
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + [line for name in extras for line in project["optional-dependencies"][name]]


def _installed(wanted):
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
