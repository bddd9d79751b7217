"""Tables say what the summary says, and what is missing."""

from __future__ import annotations

from experiments.knowledge_forgetting.analysis.summarise import summarise
from experiments.knowledge_forgetting.analysis.tables import tables
from tests.experiments.knowledge_forgetting.analysis.conftest import Grid, add_changed


def page(grid):
    return tables(summarise(grid.read(), draws=50))


def test_an_empty_grid_has_a_page(grid):
    text = page(grid)
    assert "- full fine-tuning: 0 learning rates of at least 4." in text
    assert text.count("No runs yet.") == 6
    assert (
        "1 runs, seeds none; a made-up machine, one thread a run; torch 2.13.0; 2026-11-20; base model: made_up" in text
    )


def test_a_whole_grid_has_nothing_missing(whole):
    text = page(whole)
    assert "## What the comparison of the arms still lacks\n\nNothing.\n" in text
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


def test_adapters_beside_the_same_linears_are_read_where_both_get(grid):
    for arm, kept in {"lora_mlp": (0.99, 0.8), "loramoe_paper": (1.0, 0.9)}.items():
        for n, downstream in enumerate((0.50, 0.54)):
            grid.add(arm, 1e-3 * (n + 1), kept[n], downstream)
    grid.add("full", 1.0, 0.9, 0.9)
    assert "beside the same linears" not in page(grid).split("## The goal")[1]
    alike = page(grid).split("Adapters beside the same linears")[1].split("## The goal")[0]
    assert "| arm | 51.0 % | 52.0 % | 53.0 % | 54.0 % |" in alike
    assert "full fine-tuning" not in alike
    (difference,) = [line for line in alike.splitlines() if line.startswith("| LoRAMoE as in the paper | +")]
    assert " +3.2 [" in difference.split("|")[2]  # a quarter of the way from 1 to 10


def test_arms_in_which_the_same_was_changed_have_a_section(grid):
    head = "## Arms in which the same was changed\n\n"
    assert f"{head}Nothing was changed in full fine-tuning and another arm yet.\n" in page(grid)
    add_changed(grid)
    section = page(grid).split(head)[1].split("\n## ")[0]
    assert "### With `epochs` 2\n\n| arm | learning rate | parameters | seeds |" in section
    assert "| full fine-tuning | 2 | 1,234 | 3 | 50.0 ± 0.0 | 50.0 ± 0.0 | 80.0 ± 0.0 | 50.0 | 80.0 |" in section
    assert "\n\nSeeds 0, 1, 2, test split; chosen by: the highest downstream" in section
    assert "| LoRAMoE on attention and MLP | 2 \\* | 90.0 [" in section
    assert "What an arm keeps more than **full fine-tuning**" in section
    assert "| arm | as full fine-tuning unchanged, tuned: 60.0 % | as full fine-tuning, tuned: 80.0 % |" in section
    by_full, by_itself = section.split("The goal, by full fine-tuning as it is:")[1].split("By full fine-tuning with")
    assert "Reached by: LoRAMoE on attention and MLP (in 100 % of the draws)." in by_full
    assert "No arm reaches it." in by_itself


def test_chance_is_told(grid):
    assert "then the mean. A guess is never right. Downstream accuracy is not corrected." in page(grid)
    grid.sets(facts=0.25, tasks=0.5)
    text = "A guess, or the commonest answer, is right in 25.0 % of facts, 50.0 % of tasks; in the others never."
    assert text in page(grid)


def test_rates_beyond_the_range_have_a_table_if_there_are_any(grid):
    assert "Rates beyond" not in page(grid)
    beyond = Grid(grid.folder / "beyond")
    (beyond.folder / "sets.json").unlink()
    beyond.add("full", 0.1, 0.3, 0.4)
    section = page(grid).split("## Rates beyond the range (one seed)")[1]
    assert "| full fine-tuning | 0.1 | 1,234 | 1 | 30.0 | 30.0 | 40.0 |" in section


def test_the_goal_tells_in_how_many_draws_it_is_reached(grid):
    grid.add("full", 1.0, 1.0, 0.5)
    text = page(grid)
    assert "Reached by: full fine-tuning (in 100 % of the draws)." in text
    assert "| yes | 100.0 |" in text
