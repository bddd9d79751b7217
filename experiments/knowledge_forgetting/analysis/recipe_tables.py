"""Ablations and the ranking of recipes as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from experiments.knowledge_forgetting.analysis.cells import difference, interval, percent, reading, table
from experiments.knowledge_forgetting.analysis.recipes import Recipes, RecipeSummary, Told
from experiments.knowledge_forgetting.analysis.results import SPLITS
from experiments.knowledge_forgetting.analysis.studies import order
from experiments.knowledge_forgetting.analysis.style import rank, words
from experiments.knowledge_forgetting.analysis.summary import Setting, Summary

_LEVEL: Final = (
    "Read as arms are above: over the recipe's learning rates, the most knowledge (kept, % of the base's) at at least "
    "the downstream accuracy of another arm at its tuned rate, {levels}; one that does not get so far tells how far it "
    "gets. “more”: than its own arm as it is, in points, over the learning rates and seeds that both have; “?”: "
    "uncertain, since the interval has 0 in it, or one seed alone tells nothing of the seeds' spread, or all rates of "
    "either learn more than the level, so that the difference is one of lower bounds. The settings of an arm are read "
    "at the last of these accuracies that it reaches itself."
)
_RANKED: Final = (
    "The same figures, ranked by what is kept on validation, on which a recipe is to be chosen; those that do not "
    "get as far as the level stand last. The first of many looks better on validation than it is: test tells."
)
_COLUMNS: Final = ["parameters", "rates", "seeds", *(f"{what}, {of}" for of in SPLITS for what in ("kept", "more"))]


def ablations(summary: Summary) -> str:
    """Each setting that was changed alone, with the arm as it is among its values."""
    if not summary.recipes or not summary.ablations:
        return "No runs yet."
    rows = [
        [words(arm), f"`{key}`", setting_text(setting), *_cells(recipe)]
        for (arm, key), settings in _by_setting(summary).items()
        for setting in settings
        if (recipe := _find(_reached(summary.recipes, arm), arm, {} if setting.is_own else {key: setting.value}))
    ]
    levels = _LEVEL.format(levels=" or ".join(map(_level, summary.recipes)))
    return f"{levels}\n\n{table(['arm', 'setting', 'value', *_COLUMNS], rows)}"


def ranking(summary: Summary) -> str:
    """All recipes by what they keep on validation."""
    if not summary.recipes:
        return "No runs yet."
    parts = [_RANKED]
    for recipes in summary.recipes:
        rows = [[f"{n}", _name(recipe), *_cells(recipe)] for n, recipe in enumerate(recipes.ranked, 1)]
        parts += [f"As {_level(recipes)}:", table(["rank", "recipe", *_COLUMNS], rows)]
    return "\n\n".join(parts)


def at_rates(summary: Summary) -> str:
    """Every recipe with a change at each of its learning rates, test split."""
    changed = [recipe for recipe in summary.recipes[0].ranked if recipe.changes] if summary.recipes else []
    if not changed:
        return "No runs yet."
    rows = [
        [
            _name(recipe),
            f"{at.learning_rate:g}",
            str(len(at.seeds)),
            interval(at.kept),
            interval(at.downstream),
        ]
        for recipe in changed
        for at in recipe.at_rates
    ]
    return table(["recipe", "learning rate", "seeds", "kept, % of base", "downstream, %"], rows)


def setting_text(setting: Setting) -> str:
    """A setting's value for readers.

    Args:
        setting: The setting.

    Returns:
        Its value, and whether it is the arm's own.
    """
    if setting.is_own and setting.value is None:
        return "own"
    text = _value_text(setting.value)
    return f"{text} (own)" if setting.is_own else text


def changes_text(changes: Mapping[str, Any]) -> str:
    """What was changed, for readers.

    Args:
        changes: Values by setting.

    Returns:
        The settings with their values.
    """
    return ", ".join(f"`{key}` {_value_text(value)}" for key, value in changes.items())


def _value_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _by_setting(summary: Summary) -> dict[tuple[str, str], Iterable[Setting]]:
    """The values of each setting at any learning rate, each once."""
    found: dict[tuple[str, str], dict[str, Setting]] = {}
    for ablation in summary.ablations:
        of_setting = found.setdefault((ablation.arm, ablation.key), {})
        of_setting.update({setting_text(setting): setting for setting in ablation.settings})
    keys = sorted(found, key=lambda pair: (rank(pair[0]), pair[1]))
    return {key: sorted(found[key].values(), key=lambda setting: order(setting.value)) for key in keys}


def _find(recipes: Recipes, arm: str, changes: dict[str, Any]) -> RecipeSummary | None:
    return next((one for one in recipes.ranked if (one.arm, one.changes) == (arm, changes)), None)


def _reached(levels: Sequence[Recipes], arm: str) -> Recipes:
    """The last level that an arm reaches as it is, on both splits; the first one, if none."""
    reached = [
        recipes
        for recipes in levels
        if (own := _find(recipes, arm, {})) and all(told.kept for told in own.told.values())
    ]
    return reached[-1] if reached else levels[0]


def _level(recipes: Recipes) -> str:
    levels = {split: percent(estimate.value) for split, estimate in recipes.level.items()}
    return f"{_name(recipes)} ({levels['validation']} % on validation, {levels['test']} % on test)"


def _name(of: RecipeSummary | Recipes) -> str:
    return f"{words(of.arm)}{': ' * bool(of.changes)}{changes_text(of.changes)}"


def _cells(recipe: RecipeSummary) -> Sequence[str]:
    head = [f"{recipe.trainable_parameters:,}", str(len(recipe.learning_rates)), str(len(recipe.seeds))]
    told = [recipe.told[split] for split in SPLITS]
    return head + [cell for of in told for cell in (_kept(of), _more(of, recipe))]


def _kept(told: Told) -> str:
    return reading(told.kept) if told.kept else f"not reached, at most {percent(told.most_downstream)}"


def _more(told: Told, recipe: RecipeSummary) -> str:
    if not recipe.changes:
        return ""
    more = told.more
    uncertain = more and (more.value.low <= 0 <= more.value.high or told.shared_seeds == 1 or more.is_bound)
    return difference(more) + " ?" * bool(uncertain)
