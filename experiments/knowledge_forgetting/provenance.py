"""With what a run was made, so that results that do not belong together are never put into one table.

The code is told by a fingerprint of its syntax: a comment may change, a constant may not. Arms and their recipes are no
part of it, as each run writes its recipe down.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import loramoe
from benchmarks.harness import git, hardware
from experiments.knowledge_forgetting.scale import Scale

REPO = Path(__file__).resolve().parents[2]
RESULTS = "experiments/knowledge_forgetting/results"
LIBRARIES = ("transformers", "peft")
SOURCES = (
    *(f"experiments/knowledge_forgetting/{name}.py" for name in ("exact", "run", "train")),
    *(f"loramoe/{name}" for name in ("ops", "balance", "tuner")),
)


# Code that repeats runs of earlier code to the last bit, by fingerprint: each value is the earlier one. An entry is
# made when a run that is published was made again, on the processor that made it, and its file came out the same.
REPEATS: Mapping[str, str] = {
    # 2026-11-30: the tiny scale's loramoe_all, blc_target="match", zero_experts=4, rate 0.004, seed 10
    "729c45aca180de93": "d5ae91e9759db8d1",
    # 2026-11-30: the real scale's loramoe_match and loramoe_paper, rate 0.001, seed 0
    "b6fb978ab1306cf2": "2e1ec7c34b9f4578",
}


def earliest(code: str) -> str:
    """The fingerprint of the earliest code that makes the same results as some code; its own, if nothing is known."""
    while code in REPEATS:
        code = REPEATS[code]
    return code


def provenance_of(scale: Scale) -> dict[str, Any]:
    """What all runs of a grid share; told once, before they start, as code may change while they run.

    Args:
        scale: Of the runs.

    Returns:
        `commit`, `dirty` (whether files differed from it, but for results, which a grid writes itself), `versions`,
        `hardware`, `date`; and the fingerprints of the `code`, of the `base` model's weights and of the `items`; and
        the `precision` of training and scoring.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = hardware(device)
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}")),
        "code": code_fingerprint([*SOURCES, *scale.sources]),
        "base": weights_fingerprint(scale.base()[0]),
        "precision": "bfloat16" if scale.bf16 else "float32",
        "items": hashlib.sha256(scale.asked().encode()).hexdigest()[:16],
        "versions": {
            "python": platform.python_version(),
            "loramoe": loramoe.__version__,
            "torch": torch.__version__,
            **{name: version(name) for name in LIBRARIES},
        },
        "hardware": str(machine["gpu"]) if device == "cuda" else _processor(str(machine["cpu"])),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _processor(model: str) -> str:
    """Its model, and the instructions that torch computes with: they decide on last bits, and models hide them."""
    return f"{model} with {torch.backends.cpu.get_cpu_capability()}"


def code_fingerprint(sources: Iterable[str]) -> str:
    """A hash of files, of Python's without comments and docstrings.

    Args:
        sources: Files and folders, in the repository; of folders their Python files.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for source in sources:
        path = REPO / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(_syntax(file) if file.suffix == ".py" else file.read_bytes())
    return digest.hexdigest()[:16]


def _syntax(file: Path) -> bytes:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights, to the last bit.

    Args:
        model: Any model.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
