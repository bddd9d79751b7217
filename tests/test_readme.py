"""Commands on README and the guides run, the table of hyper-parameters is the code's, and README_zh has the same code.

The commands run in a copy of the repository whose data are cut to a few samples, with variables that make runs short.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loramoe import LoraMoeConfig
from loramoe.training.arguments import DataArguments, ModelArguments, TrainArguments

ROOT = Path(__file__).resolve().parent.parent
README, README_ZH = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Not run: installations, the hub, Slurm, downloads, and "…", which stands for flags of the reader's.
NOT_RUN = re.compile(r"^pip |^hf |^srun |get_smollm2|smollm2-135m|push_to_hub|…|^pretrained_model=meta")
SHORT = {"max_steps": "2", "eval_steps": "2", "save_steps": "2", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def script(page: str) -> str:
    """The commands of a page. Those of docs/distributed.md run in tests/distributed."""
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    lines = [line.split("  #")[0] for name, code in blocks if name == "bash" for line in code.splitlines()]
    if not importlib.util.find_spec("lm_eval"):
        lines = [line for line in lines if not line.startswith("loramoe evaluate")]
    return "\n".join(["set -ex", *(line for line in lines if not NOT_RUN.search(line))])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with little data, and the command `loramoe`."""
    copy = tmp_path_factory.mktemp("checkout") / "LoRAMoE"
    ignored = shutil.ignore_patterns(".*", "output*", "models", "__pycache__", "tests", "results")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for name, count in (("train/train.json", 16), ("test.json", 8), ("recall.json", 4)):
        file = copy / "data/tiny_data" / name
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))[:count]), encoding="utf-8")
    (copy / "my_data.yaml").write_text("datasets:\n  - {path: data/tiny_data/train}\n")
    (copy / "bin").mkdir()
    (copy / "bin/loramoe").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loramoe.cli "$@"\n')
    (copy / "bin/loramoe").chmod(0o755)
    return copy


@pytest.mark.slow(minutes=5)
@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/training.md"])
def test_commands_run(page: str, checkout: Path) -> None:
    path = os.pathsep.join([str(checkout / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **SHORT, "PYTHON": sys.executable, "PATH": path, "PYTHONPATH": str(checkout)}
    env["HF_DATASETS_CACHE"] = str(checkout / ".cache")
    shutil.rmtree(checkout / "output", ignore_errors=True)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(["bash", "-c", script(page)], cwd=checkout, env=env, check=False, **streams)
    assert done.returncode == 0, done.stdout
    if page == "README.md":
        printed = re.findall(
            r"^  (\w[^:]*?)(?:   |: )", README.partition("Finished.")[2].partition("```")[0], re.MULTILINE
        )
        assert [line for line in printed if line not in done.stdout] == []


def table(page: str) -> list[list[str]]:
    """Rows of the table of hyper-parameters: name, field, meaning, paper, default."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == 5]


def same(said: str, value: object) -> bool:
    if said == "unset":
        return value in (None, "")
    return float(said) == value if isinstance(value, (int, float)) else said == value


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in table(README)])
def test_the_table_gives_the_defaults(row: list[str]) -> None:
    name, field, _, _, default = row
    found = re.search(rf"^{name}=\$\{{{name}:-([^}}]*)\}}", (ROOT / "run_loramoe.sh").read_text(), re.MULTILINE)
    assert found is not None
    assert default == (found[1] or "unset"), "of run_loramoe.sh"
    groups = (ModelArguments, DataArguments, TrainArguments)
    flags = {field.name: field.default for group in groups for field in dataclasses.fields(group)}
    if name != "per_device_train_batch_size":  # `loramoe train` has that of transformers
        assert same(default, flags[name]), "of loramoe train"
    if field:  # of an instance, because defaults of the constraint depend on the source of the configuration
        assert same(default, getattr(LoraMoeConfig(), field)), "of LoraMoeConfig"


def shape(page: str) -> tuple[object, ...]:
    """What must be equal in both languages: code, levels of headings, links, defaults."""
    prose = BLOCK.sub("", page)
    links = sorted(link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith("README"))
    defaults = [(row[0], row[1], row[4].replace("未设置", "unset")) for row in table(page)]
    return BLOCK.findall(page), [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)], links, defaults


def test_both_languages_have_the_same_code_links_and_defaults() -> None:
    assert len(README.splitlines()) <= 180
    assert shape(README_ZH) == shape(README)


def test_the_table_has_the_fields_of_the_method() -> None:
    fields = {"lora_nums", "blc_alpha", "blc_weight", "blc_target", "blc_importance", "expert_types"}
    assert fields <= {row[1] for row in table(README)}
