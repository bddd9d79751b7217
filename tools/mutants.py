"""Mutation score of the heart: faults are put into ops, balance, tuner and compat, and the default suite must fail.

The faults are those of cosmic-ray (an operator replaced, a number changed, a condition negated, …). They are drawn with
a seed, spread evenly over the files. A fault in an annotation or a docstring changes nothing and is left out. Each is
tried in a process that is forked from one that has torch, transformers and peft imported; the tests that mirror its
file run first, then the others, and the first failure ends it.

    python -m tools.mutants [--count 300] [--seed 0] [--jobs 2] [--results FILE]

It needs `pip install cosmic-ray==8.7.0`. An interrupted run continues: FILE has the outcome and the change of each
mutant. tools/survivors.md lists the survivors that no test can see, with the reason.
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
Mutant = tuple[str, str, str]  # name, file, mutated code
TIMEOUT = 600  # seconds; a fault that makes the tests run on for ever is found, too


def main() -> None:
    """Draws the mutants, tries those without a result, and prints the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir(), "mutants.json"))
    flags = parser.parse_args()
    chosen = choose(flags.count, flags.seed)
    results = json.loads(flags.results.read_text()) if flags.results.is_file() else {}
    import_libraries()
    folders = [copy_project() for _ in range(flags.jobs)]
    if os.waitpid(start(folders[0], None), 0)[1]:
        sys.exit("The tests must pass without a fault. Run them, and fix what fails.")
    run_all([mutant for mutant in chosen if mutant[0] not in results], results, folders, flags.results)
    killed = sum(results[name]["killed"] for name, *_ in chosen)
    print(f"{killed} of {len(chosen)} mutants killed: {killed / len(chosen):.1%}")


def choose(count: int, seed: int) -> list[Mutant]:
    """As many mutants from each file as its share of all: name, file, mutated code."""
    files = [file for room in ROOMS for file in sorted((ROOT / "loramoe" / room).glob("*.py"))]
    places = {file: places_in(file) for file in files}
    total = sum(map(len, places.values()))
    draw = random.Random(seed)
    chosen: list[Mutant] = []
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


def mutate(file: Path, name: str, occurrence: int) -> Mutant | None:
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
    """Imports what all tests need, except the packages of this project."""
    os.environ.update(OMP_NUM_THREADS="1")
    sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT))]
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401

    torch.set_num_threads(1)


def run_all(mutants: list[Mutant], results: dict[str, dict[str, object]], folders: list[Path], file: Path) -> None:
    """Tries the mutants, one in each folder at a time, and writes each result as it comes."""
    waiting, running = list(reversed(mutants)), dict[int, tuple[Mutant, Path]]()
    while waiting or running:
        while waiting and folders:
            mutant, folder = waiting.pop(), folders.pop()
            running[start(folder, mutant)] = mutant, folder
        process, status = os.wait()
        (name, place, mutated), folder = running.pop(process)
        shutil.copy2(ROOT / place, folder / place)
        folders.append(folder)
        source = (ROOT / place).read_text(encoding="utf-8").splitlines()
        lines = difflib.unified_diff(source, mutated.splitlines(), n=0, lineterm="")
        results[name] = {"killed": status != 0, "change": [line for line in lines if line[:2] not in ("--", "++")]}
        file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        print("killed  " if status else "SURVIVED", name, flush=True)
    for folder in folders:
        shutil.rmtree(folder)


def copy_project() -> Path:
    """Copies what is imported, and links the rest. Python keeps its bytecode there from one mutant to the next."""
    folder = Path(tempfile.mkdtemp(prefix="mutants"))
    for each in ROOT.iterdir():
        if each.name in ("loramoe", "peft", "tests", "transformers"):
            shutil.copytree(each, folder / each.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not each.name.startswith((".git", ".venv", "output")):
            (folder / each.name).symlink_to(each)
    return folder


def start(folder: Path, mutant: Mutant | None) -> int:
    """Forks a process that runs the tests in a folder, with the mutant in it. Returns its number."""
    process = os.fork()
    if process:
        return process
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        signal.alarm(TIMEOUT)
        os._exit(run_tests(folder, mutant))


def run_tests(folder: Path, mutant: Mutant | None) -> int:
    """Runs the tests that mirror the mutated file, then all. Returns pytest's exit code: 0 if all passed."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    stages = [TESTS]
    if mutant:
        _, place, mutated = mutant
        Path(place).write_text(mutated, encoding="utf-8")
        room = Path("tests", Path(place).parent.name)
        stages.insert(0, sorted(map(str, room.glob(f"test_{Path(place).stem}*.py"))) or [str(room)])
    import loramoe  # noqa: F401  # registers the method with peft, which is imported already

    options = ["-x", "-q", "-m", "not slow and not long", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return next((code for tests in stages if (code := int(pytest.main([*options, *tests])))), 0)


if __name__ == "__main__":
    main()
