"""Mutation score of the heart: faults are put into ops, balance, tuner and compat, and the default suite must fail.

The faults are those of cosmic-ray (an operator replaced, a number changed, a condition negated, …). They are drawn with
a seed, spread evenly over the files. A fault in an annotation or a docstring changes nothing and is left out. Each is
tried in a process that is forked from one that has torch and transformers imported; the tests that mirror its file run
first, and the first failure ends it.

    python -m tools.mutants [--count 300] [--seed 0] [--jobs 2]     # needs `pip install cosmic-ray==8.7.0`

An interrupted run continues. Results: tools/mutants.json, with the change of each mutant.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("ops", "balance", "tuner", "compat")
TESTS = [*(f"tests/{room}" for room in ROOMS), "tests/conformance", "tests/test_golden.py", "tests/test_house.py"]
RESULTS = ROOT / "tools" / "mutants.json"
TIMEOUT = 900  # seconds; a fault that makes the tests run on for ever is found, too


def main() -> None:
    """Draws the mutants, tries those without a result, and prints the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    flags = parser.parse_args()
    chosen = choose(flags.count, flags.seed)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    import_libraries()
    if outcome := try_mutant(None):
        sys.exit(f"The tests must pass without a fault; they ended with {outcome}.")
    run_all([mutant for mutant in chosen if mutant[0] not in results], results, flags.jobs)
    killed = sum(results[name]["killed"] for name, *_ in chosen)
    print(f"{killed} of {len(chosen)} mutants killed: {killed / len(chosen):.1%}")


def choose(count: int, seed: int) -> list[tuple[str, str, str]]:
    """As many mutants from each file as its share of all: name, file, mutated code."""
    files = [file for room in ROOMS for file in sorted((ROOT / "loramoe" / room).glob("*.py"))]
    places = {file: places_in(file) for file in files}
    total = sum(map(len, places.values()))
    draw = random.Random(seed)
    chosen: list[tuple[str, str, str]] = []
    for file, found in places.items():
        draw.shuffle(found)
        mutants = (mutant for place in found if (mutant := mutate(file, *place)))
        chosen += islice(mutants, math.ceil(count * len(found) / total))
    print(f"{len(chosen)} mutants, of {total} places for one")
    return chosen


def places_in(file: Path) -> list[tuple[str, int]]:
    """Operators of cosmic-ray and, for each, the numbers of the places where it applies."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    crude = re.compile("ExceptionReplacer|_Bit|Shift$|_Not$|_Invert$")  # the first fails itself; the others end at once
    nodes = list(ast_nodes(get_ast(file.read_text(encoding="utf-8"))))
    found = []
    for name in operator_names():
        operator_class = get_operator(name)
        if not operator_class.arguments() and not crude.search(name):
            operator = operator_class()
            count = sum(1 for node in nodes for _ in operator.mutation_positions(node))
            found += [(name, occurrence) for occurrence in range(count)]
    return found


def mutate(file: Path, name: str, occurrence: int) -> tuple[str, str, str] | None:
    """The mutant, or None where it changes nothing of what Python runs."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source, place = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    mutated = mutate_code(source, get_operator(name)(), occurrence)
    try:
        if not mutated or meaning(mutated) == meaning(source):
            return None
    except SyntaxError:
        return None
    return f"{place} {name.rsplit('/', maxsplit=1)[-1]} {occurrence}", place, mutated


def meaning(source: str) -> str:
    """The program without annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(0)
    return ast.dump(tree)


def import_libraries() -> None:
    """Imports what all tests need, except the packages of this project and peft, which its overlay must find first."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)


def run_all(mutants: list[tuple[str, str, str]], results: dict[str, dict[str, object]], jobs: int) -> None:
    """Tries the mutants, `jobs` at a time, and writes each result as it comes."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[start(mutant)] = mutant
        process, status = os.wait()
        name, place, mutated = running.pop(process)
        source = (ROOT / place).read_text(encoding="utf-8").splitlines()
        change = [
            line for line in difflib.unified_diff(source, mutated.splitlines(), n=0, lineterm="") if line[:2] != "--"
        ]
        results[name] = {"killed": status != 0, "change": change[1:]}
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print("killed  " if status else "SURVIVED", name, flush=True)


def try_mutant(mutant: tuple[str, str, str] | None) -> int:
    """Tries one and waits: 0 means that all tests passed."""
    return os.waitpid(start(mutant), 0)[1]


def start(mutant: tuple[str, str, str] | None) -> int:
    """Forks a process that runs the tests on a copy with the mutant in it. Returns its number."""
    process = os.fork()
    if process:
        return process
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        signal.alarm(TIMEOUT)
        outcome = run_tests(Path(folder), mutant)
    os._exit(outcome)


def run_tests(folder: Path, mutant: tuple[str, str, str] | None) -> int:
    """Runs the tests in a copy of the project."""
    import pytest

    for each in ROOT.iterdir():
        if each.name == "loramoe":
            shutil.copytree(each, folder / each.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not each.name.startswith((".git", ".venv", "output")):
            (folder / each.name).symlink_to(each)
    tests = list(TESTS)
    if mutant:
        _, place, mutated = mutant
        (folder / place).write_text(mutated, encoding="utf-8")
        file = Path(place)
        tests = [str(each) for each in (ROOT / "tests" / file.parent.name).glob(f"test_{file.stem}*.py")] + tests
        tests = [each.replace(f"{ROOT}/", "") for each in tests]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    return int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))


if __name__ == "__main__":
    main()
