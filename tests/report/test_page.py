"""The page is valid, whole in itself, says which constraint there was, and shows any name as it is."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loramoe.report.page import facts, html, literal, markdown
from loramoe.report.pictures import draw_all
from tests.report.reports import HOSTILE, make_measures, make_source

SEEN = HOSTILE.replace("\u202e\n", "\\u202e\\n").replace(" ", "␣")


def parsed(page: str) -> ElementTree.Element:
    """Well-formed XML, with every element closed in its order and every attribute in quotes, or an error."""
    doctype, _, rest = page.partition("\n")
    assert doctype == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest)


def page_of(measures, folder: Path, name: str = "adapter") -> str:
    return html(measures, make_source(name), draw_all(measures, folder), folder)


def test_the_page_is_valid_and_asks_for_nothing(tmp_path: Path):
    page = page_of(make_measures(), tmp_path)
    root = parsed(page)
    images = root.findall(".//img")
    assert len(images) == 6
    assert all(image.get("src").startswith("data:image/png;base64,") and image.get("alt") for image in images)
    text = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?:|url\(|@import|<script|<link|src=|\son\w+=", text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids == ["gates", "shares", "entropy", "variation", "tokens"]
    assert root.get("lang") == "en"
    for row in root.findall(".//tr"):
        assert all(cell.tag in ("th", "td") for cell in row)
    for table in root.findall(".//table"):
        widths = {len(row) for row in table.iter("tr")}
        assert len(widths) == 1


def test_the_page_tells_the_numbers(tmp_path: Path):
    measures = make_measures()
    tables = parsed(page_of(measures, tmp_path)).findall(".//table")
    shares = [[cell.text for cell in row] for row in tables[0].iter("tr")]
    assert shares[1] == ["type 0", *(f"{share:.1%}" for share in measures.share_TG[0])]
    gates = [[cell.text for cell in row] for row in tables[2].iter("tr")]
    assert gates[2] == ["1", *(f"{gate:.3f}" for gate in measures.gate_TNE[1][1])]
    codes = [code.text for code in tables[-1].iter("code")]
    assert codes == [token.text.replace(" ", "␣") for liked in measures.bands[-1].liked for token in liked]


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path):
    page = page_of(make_measures(text=HOSTILE), tmp_path, name=HOSTILE)
    assert "<script" not in page
    root = parsed(page)
    assert {code.text for code in root.iter("code")} == {SEEN}
    assert root.find(".//h1").text == f"The experts of {SEEN.replace('␣', ' ')}"
    assert root.find(".//dd").text == SEEN.replace("␣", " ")


def test_markdown_shows_hostile_names_as_they_are(tmp_path: Path):
    measures = make_measures(text=HOSTILE)
    text = markdown(measures, make_source(), draw_all(measures, tmp_path))
    codes = re.findall(r"<code>(.*?)</code>", text)
    assert codes
    for code in codes:
        assert not re.search(r"[<>`*_|\[\]\n]", code)
    assert "<script" not in text


def test_markdown_has_whole_tables_and_its_pictures(tmp_path: Path):
    measures = make_measures(task_types=(0, 1, 5))
    text = markdown(measures, make_source(), draw_all(measures, tmp_path))
    for file in re.findall(r"!\[[^\]]+\]\((.*?)\)", text):
        assert (tmp_path / file).is_file()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) == {"|", "-"}
    assert "\n\n\n" not in text


def test_literal_leaves_words_alone():
    assert literal("type 0: 1,000 rows; 45.9%") == "type 0: 1,000 rows; 45.9%"
    assert literal("a|b_c`") == "a&#124;b&#95;c&#96;"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"blc_target": "paper"},
            'blc_target="paper": the matching group is pushed to less gate weight; blc_weight=0.1, blc_alpha=0.1',
        ),
        ({"blc_target": "match"}, 'blc_target="match": the matching group is pushed to more'),
        ({"blc_weight": 0}, "none (blc_weight=0)"),
    ],
)
def test_the_direction_of_the_constraint_is_told(options: dict[str, object], words: str):
    told = facts(make_measures(), make_source(**options))
    assert words in told["constraint in training"]
    assert told["experts"].endswith("beside each of 6 linears in 3 layers; type 0: 2, 3, type 1: 0, 1")
    assert told["rows"] == "12 of adapter.json"


def test_other_ranks_are_told():
    told = facts(make_measures(), make_source(r=4, rank_pattern={"down_proj": 8, "up_proj": 2}))
    assert told["experts"].startswith("4 of rank 4 (down_proj: 8, up_proj: 2, by rank_pattern) beside each of 6")


def test_experts_without_frequent_tokens_have_none(tmp_path: Path):
    measures = make_measures(vocabulary=4)  # of which none occurs 5 times
    assert "<small>none</small>" in page_of(measures, tmp_path)
    assert "none |" in markdown(measures, make_source(), draw_all(measures, tmp_path))
