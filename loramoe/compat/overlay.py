"""How a folder named `peft` or `transformers` takes the place of the installed library of that name, and extends it.

An overlay's `__init__.py` calls `run_installed`, so that `import peft` gives the installed peft wherever this
repository is first on the path. Only the standard library is used: this module runs during the import of peft.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

Extension = Callable[[ModuleType], None]


class ExtensionFinder(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and has extensions applied after they have run."""

    def __init__(self) -> None:
        self.extensions: dict[str, list[Extension]] = {}  # by name of the module that they extend
        self.overlays: set[str] = set()  # names that an overlay has answered; a reload finds the installed library

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with a loader that applies the extensions, or None."""
        if fullname in self.overlays and fullname in sys.modules:
            spec = find_installed(fullname)
        elif fullname in self.extensions:
            specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
            spec = next((spec for spec in specs if spec is not None), None)
        else:
            return None
        if spec is not None and spec.loader is not None:
            self._apply_after(spec.loader, fullname)
        return spec

    def apply(self, name: str) -> None:
        """Apply every extension of a module that has run."""
        for extension in self.extensions.get(name, []):
            extension(sys.modules[name])

    def _apply_after(self, loader: importlib.abc.Loader, name: str) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.apply(name)

        # On the instance: the loader keeps its type, which importlib.resources and inspect look at.
        loader.exec_module = exec_module  # type: ignore[method-assign]


def finder() -> ExtensionFinder:
    """Return the process's one ExtensionFinder, first in `sys.meta_path`."""
    for found in sys.meta_path:
        if isinstance(found, ExtensionFinder):
            return found
    sys.meta_path.insert(0, new := ExtensionFinder())
    return new


def when_imported(name: str, extension: Extension) -> None:
    """Apply an extension to a module: now if it has been imported, else right after it will be."""
    finder().extensions.setdefault(name, []).append(extension)
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        extension(module)


def run_installed(name: str, overlay: str) -> None:
    """Run the installed library in its overlay's place; each other file of that extends the module of its name."""
    init = Path(overlay).resolve()
    spec = find_installed(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{init.parent} extends {name}, which is not installed. Run: pip install {name}")
    finder().overlays.add(name)
    for file in sorted(set(init.parent.rglob("*.py")) - {init}):
        extended = ".".join(file.relative_to(init.parent.parent).with_suffix("").parts)
        when_imported(extended, lambda module, file=file: _extend_from(file, module))  # type: ignore[misc]
    _run_in_place(name, spec)
    finder().apply(name)


def find_installed(name: str) -> ModuleSpec | None:
    """Return the spec of an installed library that overlays hide: this repository's, and those of other clones."""
    # A new list, given to the finder: other threads may be importing by sys.path at this very moment.
    elsewhere = [entry for entry in sys.path if not is_overlay(Path(entry or os.getcwd(), name, "__init__.py"))]
    for candidate in sys.meta_path:
        if isinstance(candidate, ExtensionFinder):
            continue
        spec = candidate.find_spec(name, elsewhere if candidate is PathFinder else None)
        if spec is not None and (spec.origin is None or not is_overlay(Path(spec.origin))):
            return spec
    return None


def is_overlay(init: Path) -> bool:
    """Return whether a package's `__init__.py` is an overlay's: one that imports this module, in any clone."""
    return init.is_file() and b"import run_installed" in init.read_bytes()


def _run_in_place(name: str, spec: ModuleSpec) -> None:
    overlay_module = sys.modules[name]
    module = importlib.util.module_from_spec(spec)
    spec._initializing = True  # type: ignore[attr-defined]  # a second thread importing the library waits for it
    sys.modules[name] = module
    # A thread that imported the overlay a moment ago holds it, and waits: what it then asks of it, the library answers.
    vars(overlay_module)["__getattr__"] = lambda attribute: getattr(sys.modules[name], attribute)
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules[name] = overlay_module  # the import system removes it and reports the failure
        raise
    finally:
        spec._initializing = False  # type: ignore[attr-defined]


def _extend_from(file: Path, module: ModuleType) -> None:
    namespace: dict[str, Any] = {"__name__": f"loramoe_overlay.{module.__name__}"}
    exec(compile(file.read_bytes(), file, "exec"), namespace)
    namespace["extend"](module)
