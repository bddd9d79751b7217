"""What an evaluation leaves in its folder, and finds again.

    scores/TASK--MODEL.json   what became of each question, written as soon as a model is done with a task
    results.json              all figures, and what they were measured with
    results.md                the table

Scores are taken again only if everything that could change them is the same: the bytes of the task, of the model and
of the adapter, the settings and the versions. So an evaluation that was cut off goes on where it was, and one more
adapter costs that adapter alone.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import torch
from huggingface_hub import try_to_load_from_cache

import loramoe
from loramoe.data.sources import file_hash
from loramoe.evaluation.scoring import Prepared, Scores
from loramoe.evaluation.statistics import Line
from loramoe.evaluation.table import markdown
from loramoe.utils import as_usage_error, write_json, write_text

_DEFINING: Final = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")


def _versions() -> dict[str, str]:
    """Versions of what computes the figures."""
    packages = ("torch", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), "loramoe": loramoe.__version__} | {
        name: version(name) for name in packages
    }


@dataclass(frozen=True)
class Store:
    """The folder of an evaluation.

    Attributes:
        folder: The folder.
        settings: How questions are asked, and how the base model is loaded.
        models: By the models' names, hashes of all files that define them.
    """

    folder: Path
    settings: Mapping[str, Any]
    models: Mapping[str, Any]
    versions: dict[str, str] = field(default_factory=_versions)

    def check_writable(self) -> None:
        """Makes the folders, before the first question is asked.

        Raises:
            UsageError: If they cannot be made or written to.
        """
        for folder in (self.folder, self.folder / "scores"):
            with as_usage_error(OSError, about=f"set --output_dir to a folder that can be written to, got {folder}:"):
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()

    def find(self, model: str, prepared: Prepared) -> Scores | None:
        """Finds the scores of a model on a task, None where there are none or they are of something else."""
        try:
            saved = json.loads(self._file(model, prepared).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(saved, dict) or saved.get("asked") != self._asked(model, prepared):
            return None
        scores: Scores = saved["scores"]
        return scores

    def keep(self, model: str, prepared: Prepared, scores: Scores) -> None:
        """Writes the scores of a model on a task."""
        file = self._file(model, prepared)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"asked": self._asked(model, prepared), "scores": scores})

    def finish(self, lines: list[Line], tasks: list[Prepared], facts: Mapping[str, Any]) -> str:
        """Writes the figures and the table.

        Args:
            lines: Lines of the table.
            tasks: The tasks.
            facts: More to say in results.json.

        Returns:
            The table.
        """
        told = {one.task.name: {"file": str(one.task.file), "sha256": one.task.sha256} for one in tasks}
        about = {"settings": dict(self.settings), "versions": self.versions, "models": dict(self.models), "tasks": told}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "results.json", {**facts, **about, "lines": [asdict(line) for line in lines]})
        table = markdown(lines, list(self.models))
        measured = ", ".join(
            [*(f"{name} {number}" for name, number in self.versions.items()), *map(str, facts.values())]
        )
        write_text(self.folder / "results.md", f"{table}\n{measured}\n")
        return table

    def _file(self, model: str, prepared: Prepared) -> Path:
        return self.folder / "scores" / f"{_plain(prepared.task.name)}--{_plain(model)}.json"

    def _asked(self, model: str, prepared: Prepared) -> dict[str, Any]:
        models = [next(iter(self.models.values())), self.models[model]]  # the base model, and what is on it
        asked = {"task": prepared.task.sha256, "models": models, "settings": self.settings, "versions": self.versions}
        plain: dict[str, Any] = json.loads(json.dumps(asked))
        return plain


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def fingerprint(name: str) -> dict[str, str]:
    """Hashes what defines a model or an adapter.

    Args:
        name: Its folder, or its name on the hub after it was loaded.

    Returns:
        SHA-256 of each file of weights, configuration and tokenizer.

    Raises:
        FileNotFoundError: If it is neither a folder nor in the hub's cache.
    """
    found = try_to_load_from_cache(name, "config.json") if not Path(name).is_dir() else None
    folder = Path(found).parent if isinstance(found, str) else Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor in the hub's cache, so that earlier scores cannot be told to be of the "
            "same model. Download it, and give its folder in place of the name."
        )
    return {
        file.name: file_hash(file) for file in sorted(folder.iterdir()) if file.suffix in _DEFINING and file.is_file()
    }


def facts_of(device: torch.device, command: str) -> dict[str, str]:
    """When, where and by which command something was measured."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{_cpu()}, {torch.get_num_threads()} threads"
    return {"hardware": hardware, "date": datetime.now(timezone.utc).date().isoformat(), "command": command}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
