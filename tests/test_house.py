"""The house: imports point down its rooms, without circles; files and functions have one subject and a limit.

`pytest -s tests/test_house.py` prints the lines of each room.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "loramoe"
# From the top down. What stands on one line may not import each other. Rooms that are yet to be built are not listed.
ROOMS = (("registration",), ("tuner",), ("compat",), ("balance",), ("ops",))
HEART = ("__init__", "registration", "tuner", "compat", "balance", "ops", "overlays")
OF_TRAINING = ("compat/tokenizer.py",)  # no part of the heart
HEART_LINES, FILE_LINES, FUNCTION_LINES = 2_500, 300, 60


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


def test_sizes() -> None:
    lines: dict[str, int] = {}
    for file in sorted(LIBRARY.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        place = file.relative_to(LIBRARY)
        part = "training" if str(place) in OF_TRAINING else place.with_suffix("").parts[0]
        lines[part] = lines.get(part, 0) + text.count("\n")
        assert text.count("\n") <= FILE_LINES, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{file}: {node.name}"
    overlays = [file for name in ("peft", "transformers") for file in (LIBRARY.parent / name).rglob("*.py")]
    lines["overlays"] = sum(file.read_text(encoding="utf-8").count("\n") for file in overlays)
    print("\n".join(f"{count:6} {name}" for name, count in lines.items()))
    heart = sum(lines[name] for name in HEART)
    print(f"{heart:6} of at most {HEART_LINES}: {', '.join(HEART)}")
    assert heart <= HEART_LINES
