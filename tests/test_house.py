"""The house: imports point down its rooms, without circles; files and functions have one subject and a limit.

`pytest -s tests/test_house.py` prints the lines of each room.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "loramoe"
# From the top down. What stands on one line may not import each other.
ROOMS = (
    ("cli",),
    ("evaluate", "generate", "serving", "integrations", "training"),
    ("evaluation", "analysis", "export"),
    ("decoding",),
    ("loading",),
    ("data", "registration"),
    ("tuner",),
    ("compat",),
    ("balance",),
    ("ops",),
    ("utils",),
)
HEART = ("__init__", "registration", "tuner", "compat", "balance", "ops", "overlays")
FILE_LINES, FUNCTION_LINES, PACKAGE_FILES = 300, 60, 9
# What the parts may have today. A change may lower these numbers; the library is to have 7,000 lines.
MOST_LINES = {"heart": 2_500, "library": 9_400, "tests": 14_700, "experiments": 1_800, "benchmarks": 1_000}


def modules() -> dict[str, ast.Module]:
    """Every module of the library by its full name, parsed."""
    parsed = {}
    for file in sorted(LIBRARY.rglob("*.py")):
        parts = ("loramoe", *file.relative_to(LIBRARY).with_suffix("").parts)
        parsed[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return parsed


def imports_of(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules of the library that a module imports when it is imported."""
    found: set[str] = set()
    for node in tree.body:  # not those within functions, nor for the type checker alone
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loramoe"):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (full & known) or {node.module or ""}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
    return found


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_no_import_circles() -> None:
    parsed = modules()
    graph = {name: imports_of(tree, set(parsed)) - {name} for name, tree in parsed.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_arrows_point_down() -> None:
    parsed = modules()
    level = {name: depth for depth, names in enumerate(ROOMS) for name in names}
    upward = [
        f"{name} imports {imported}"
        for name, tree in parsed.items()
        for imported in imports_of(tree, set(parsed))
        if room(name) in level and room(imported) and level.get(room(imported), -1) < level[room(name)]
    ]
    assert not upward


def test_the_mathematics_knows_no_library_of_models() -> None:
    for name, tree in modules().items():
        if room(name) in ("ops", "balance"):
            imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {each.split(".")[0] for each in imported} & {"peft", "transformers", "accelerate", "trl"}


def count_lines(folder: Path) -> int:
    return sum(file.read_text(encoding="utf-8").count("\n") for file in folder.rglob("*.py"))


def test_files_and_functions_have_one_subject() -> None:
    for file in sorted(LIBRARY.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= FILE_LINES, file
        assert len(list(file.parent.glob("[a-z]*.py"))) <= PACKAGE_FILES, file.parent
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{file}: {node.name}"


def test_sizes() -> None:
    lines: dict[str, int] = {}
    for file in sorted(LIBRARY.rglob("*.py")):
        place = file.relative_to(LIBRARY)
        part = "training" if str(place) == "compat/tokenizer.py" else place.with_suffix("").parts[0]
        lines[part] = lines.get(part, 0) + file.read_text(encoding="utf-8").count("\n")
    lines["overlays"] = sum(count_lines(LIBRARY.parent / name) for name in ("peft", "transformers"))
    print("\n".join(f"{count:6} {name}" for name, count in lines.items()))
    found = {name: count_lines(LIBRARY.parent / name) for name in ("tests", "experiments", "benchmarks")}
    found |= {"heart": sum(lines[name] for name in HEART), "library": sum(lines.values())}
    print("\n".join(f"{found[name]:6} of at most {most}: {name}" for name, most in MOST_LINES.items()))
    assert not {name: found[name] for name, most in MOST_LINES.items() if found[name] > most}
