"""Links of the pages lead somewhere, names exist, tables are up to date, README_zh.md has the content of README.md."""

from __future__ import annotations

import dataclasses
import pydoc
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from loramoe import LoraMoeConfig
from loramoe.training.arguments import DataArguments, ModelArguments, TrainArguments
from scripts import flag_table, memory_tables
from scripts.blocks import differing
from scripts.ecosystem import serving
from scripts.figures import direction, overview

ROOT = Path(__file__).resolve().parent.parent
FILES = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "data/README.md", ROOT / "benchmarks/README.md")
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in sorted(FILES)}
README, README_ZH = PAGES["README.md"], PAGES["README_zh.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = "configs|data|docs|evaluation|examples|loramoe|peft|scripts|tests|transformers"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)`")
NAME = re.compile(r"(?:`|^::: )(loramoe(?:\.\w+)+)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(page: str, link: str) -> bool:
    target, _, anchor = link.partition("#")
    file = (ROOT / page).parent / target if target else ROOT / page
    return link.startswith(("https://", "mailto:")) or (file.exists() and (not anchor or anchor in anchors(file)))


def test_links_and_named_files_exist() -> None:
    links = [(page, link) for page, text in PAGES.items() for link in LINK.findall(BLOCK.sub("", text))]
    assert [(page, link) for page, link in links if not leads_somewhere(page, link)] == []
    assert [
        (page, name) for page, text in PAGES.items() for name in FILE.findall(text) if not (ROOT / name).exists()
    ] == []


def exists(name: str) -> bool:
    try:
        return pydoc.locate(name) is not None
    except pydoc.ErrorDuringImport:  # a plug-in for a tool that is not installed
        return True


def test_named_code_exists() -> None:
    pages = [page for page in PAGES if page != "CHANGELOG.md"]  # which has the names of the past
    assert [(page, name) for page in pages for name in set(NAME.findall(PAGES[page])) if not exists(name)] == []


SLOW = [pytest.param(table.blocks, marks=pytest.mark.slow) for table in (memory_tables, direction)]


@pytest.mark.parametrize("blocks", [flag_table.blocks, serving.blocks, *SLOW])
def test_tables_are_up_to_date(blocks: Callable[[], dict[tuple[str, str], str]]) -> None:
    assert differing(blocks()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", [overview, direction])
def test_figures_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    script.draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


# --- The hyper-parameters, and README in two languages ----------------------------------------------------------------


def table(page: str) -> list[list[str]]:
    """Rows of the table of hyper-parameters: name, field, meaning, paper, default."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == 5]


def same(said: str, value: object) -> bool:
    if said == "unset":
        return value in (None, "")
    return float(said) == value if isinstance(value, (int, float)) else said == value


def test_the_table_gives_the_defaults_of_script_command_and_configuration() -> None:
    rows = table(README)
    script = dict(re.findall(r"^(\w+)=\$\{\w+:-([^}]*)\}", (ROOT / "run_loramoe.sh").read_text(), re.MULTILINE))
    groups = (ModelArguments, DataArguments, TrainArguments)
    flags = {field.name: field.default for group in groups for field in dataclasses.fields(group)}
    del flags["per_device_train_batch_size"]  # `loramoe train` has that of transformers
    config = LoraMoeConfig()  # an instance, because defaults of the constraint depend on the configuration's source
    assert [row for row in rows if row[-1] != (script[row[0]] or "unset")] == []
    assert [row for row in rows if row[0] in flags and not same(row[-1], flags[row[0]])] == []
    assert [row for row in rows if row[1] and not same(row[-1], getattr(config, row[1]))] == []
    own = {"lora_nums", "blc_alpha", "blc_weight", "blc_target", "blc_importance", "expert_types"}
    assert own <= {row[1] for row in rows}


def shape(page: str) -> tuple[object, ...]:
    """What must be equal in both languages: code, levels of headings, links, defaults."""
    prose = BLOCK.sub("", page)
    links = sorted(link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith("README"))
    defaults = [(row[0], row[1], row[4].replace("未设置", "unset")) for row in table(page)]
    return BLOCK.findall(page), [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)], links, defaults


def test_both_languages_have_the_same_code_links_and_defaults() -> None:
    assert len(README.splitlines()) <= 180
    assert shape(README_ZH) == shape(README)
