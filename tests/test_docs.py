"""The pages hold: links lead somewhere, names exist, Python blocks run and print what they say, tables are of today."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from scripts import flag_table, memory_tables
from scripts.blocks import differing, fill

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "data/README.md",
    )
)

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE = re.compile(
    r"`((?:\.ci|configs|data|docs|evaluation|examples|integrations|loramoe|peft|scripts|tests|transformers)/[\w./-]+)`"
)
NAME = re.compile(r"`(loramoe(?:\.\w+)+)`")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/figures/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that what the pages write does not land in it."""
    copy = tmp_path_factory.mktemp("checkout") / "LoRAMoE"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "output*", "models", "__pycache__", "tests"))
    return copy


def run(checkout: Path, *command: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Links and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(FENCED.sub("", text(page))):
        target, _, anchor = link.partition("#")
        if target.startswith(("https://", "mailto:")):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(file), f"{page} links to {link}, which has {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    missing = [name for name in FILE.findall(text(page)) if not (ROOT / name).exists()]
    assert not missing, f"{page} names files that are not there: {missing}"


def exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in ("axolotl", "swift"):  # the plug-in is there; the tool is not
            return True
        return exists(module) and hasattr(thing(module), attribute) if module else False
    return True


def thing(name: str) -> Any:
    """The module, class or function of a full name that exists."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        home, _, attribute = name.rpartition(".")
        return getattr(thing(home), attribute)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # which names what is gone, too
def test_code_that_is_named_exists(page: str) -> None:
    missing = [name for name in NAME.findall(text(page)) if not exists(name)]
    assert not missing, f"{page} names code that is not there: {missing}"


# --- Python blocks ---------------------------------------------------------------------------------------------------

# README_zh.md has the blocks of README.md, letter by letter: see test_readme.py.
BLOCKS = [
    pytest.param(*block, id=f"{page}-{n}")
    for page in PAGES
    if page != "README_zh.md"
    for n, block in enumerate(PYTHON.findall(text(page)))
]


def imported(code: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_python_blocks_run(code: str, output: str, checkout: Path) -> None:
    missing = {name.partition(".")[0] for name in imported(code)}
    missing = {name for name in missing if importlib.util.find_spec(name) is None}
    if missing:
        pytest.skip(f"needs {', '.join(sorted(missing))}, not installed here")
    printed = run(checkout, sys.executable, "-c", code.replace("/path/to/LoRAMoE", str(checkout)))
    assert not output or printed == output


# --- Tables and figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [flag_table.blocks, memory_tables.blocks], ids=["flags", "memory"])
def test_the_tables_that_scripts_write_are_up_to_date(blocks: Callable[[], dict[tuple[str, str], str]]) -> None:
    assert differing(blocks()) == []


def test_a_page_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the markers <!-- flags -->"):
        fill("# No table", "flags", "")


def test_the_tables_of_the_method_page_are_up_to_date() -> None:
    page = text("docs/method.md")
    assert script("direction").fill(page) == page


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("target", ["match", "paper"])
def test_with_the_mean_every_length_reaches_the_closed_form(ratio: int, target: str) -> None:
    direction = script("direction")
    for types, lengths in ((direction.TWO_TYPES, (1, ratio)), (direction.THREE_TYPES, (1, ratio, 2 * ratio))):
        own_group = direction.closed_form(len(lengths), 0.1, target)
        shares = direction.minimise(types, 0.1, target, "mean", lengths)
        assert shares == pytest.approx([own_group] * len(lengths), abs=1e-5)


def test_with_the_sum_a_short_sample_goes_to_the_other_group() -> None:
    direction = script("direction")
    question, task = direction.minimise(direction.TWO_TYPES, 0.1, "match", "sum", (1, 4))
    assert question < 0.5 < task


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one pair of markers <!-- split:begin/end -->"):
        script("direction").fill("# No table")


@pytest.mark.parametrize("name", ["overview", "direction"])
def test_figures_are_drawn_the_same_each_time(name: str, tmp_path: Path) -> None:
    draw = script(name).draw
    draw(tmp_path / "first.png")
    draw(tmp_path / "second.png")
    first = (tmp_path / "first.png").read_bytes()
    assert first == (tmp_path / "second.png").read_bytes()
    assert first[16:24] == (ROOT / f"docs/figures/{name}.png").read_bytes()[16:24], "width and height of the one shown"


# --- Citation --------------------------------------------------------------------------------------------------------


def test_the_citation_is_of_this_version_and_every_readme_points_to_it() -> None:
    import loramoe

    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == loramoe.__version__
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Dou"
    for page in ("README.md", "README_zh.md"):
        assert "](CITATION.cff)" in text(page)


# --- The tokenizer ---------------------------------------------------------------------------------------------------


def test_the_pieces_in_the_data_page_are_the_shipped_tokenizers() -> None:
    from transformers import AutoTokenizer

    from loramoe.data import conversation, get_template

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny_llama")
    page = " ".join(text("docs/data.md").split())
    template = get_template("release", tokenizer)
    (encoded,) = template.encode([conversation("Which city does Mila Rodak come from?", "", "Tarvesh")])
    for ids in (encoded.prompt, encoded.target, template.prompt_ids("Is </s> a tag?")):
        assert " ".join(tokenizer.convert_ids_to_tokens(ids)) in page


def test_the_counts_in_the_data_page_are_those_of_the_tiny_data(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from loramoe.data import tokenise_dataset

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny_llama")
    _, report = tokenise_dataset(ROOT / "data/tiny_data/train", tokenizer, max_seq_length=48, cache_dir=tmp_path)
    assert "\n".join(f"    {line}" for line in str(report).splitlines()) in text("docs/data.md")
