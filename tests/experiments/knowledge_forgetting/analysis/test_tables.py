"""Tables say what the summary says, and what is missing."""

from __future__ import annotations

from experiments.knowledge_forgetting.analysis.summarise import summarise
from experiments.knowledge_forgetting.analysis.tables import table, tables


def page(grid):
    return tables(summarise(grid.read(), draws=50))


def test_a_table():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --: |\n| 1 | 2 |"


def test_an_empty_grid_has_a_page(grid):
    text = page(grid)
    assert "- full fine-tuning: 0 learning rates of at least 4." in text
    assert text.count("No runs yet.") == 4
    assert "1 runs, seeds none; a made-up machine, threads 1; torch 2.13.0; 2026-11-20; commit 0123456." in text


def test_a_whole_grid_has_nothing_missing(whole):
    text = page(whole)
    assert "## What is missing\n\nNothing.\n" in text
    assert "No runs" not in text
    every = [line for line in text.splitlines() if line.startswith("| LoRAMoE as in the paper | 0.0003 | 1,234 | 3 |")]
    assert [line.count("|") for line in every] == [10]
    assert " 79.0 ± 0.0 | 79.0 ± 0.0 | 59.0 ± 1.0 |" in every[0]
    assert "| LoRAMoE as in the paper | 0.0003 | 0.50 (0.50 to 0.50) | 0.60 / 0.40 | 0.30 / 0.70 |" in text


def test_an_arm_that_does_not_get_so_far_says_so(grid):
    grid.add("full", 1.0, 0.9, 0.5)
    grid.add("full", 2.0, 0.5, 0.9)
    grid.add("lora_mlp", 1.0, 0.8, 0.6)
    matched = page(grid).split("## Knowledge at matched")[1].split("## The goal")[0]
    head, _, full, lora = [line.split(" | ") for line in matched.splitlines() if line.startswith("|")][:4]
    assert head[1:3] == ["as full fine-tuning, tuned: 90.0 %", "as LoRA on the MLP, tuned: 60.0 %"]
    assert full[2].startswith("80.0 [")
    assert lora[1] == "not reached"
    assert "No arm reaches it." in page(grid)
    assert "| none fits |" in page(grid)


def test_own_values_stand_among_the_others(whole):
    text = page(whole)
    values = [line.split(" | ")[2] for line in text.splitlines() if "`lora_nums`" in line]
    assert values == ["2", "8 (own)", "16"]
    assert "| `targets` | gate_proj, up_proj, down_proj (own) |" in text
    assert "| `unheard_of` | own |" in text


def test_differences_have_a_sign(whole):
    line = next(line for line in page(whole).splitlines() if "`lora_nums` | 2 |" in line)
    kept, difference, downstream, other = line.strip("| ").split(" | ")[5:]
    assert difference.startswith("+1.0 [")
    assert other.startswith("+7.0 [")
    assert (kept[:4], downstream[:4]) == ("80.0", "65.0")
