"""Which downstream sets count: those that fine-tuning teaches at all.

Where no arm is better than the commonest answer, accuracy says which answer a run happens to prefer, and nothing of
what it has learnt. BoolQ without its passages is such a set for a small model: a run that gives one answer to all items
is right in 64 or in 36 % of them, a difference that drowns all others in the mean.
"""

from __future__ import annotations

import dataclasses

from experiments.knowledge_forgetting.analysis import studies
from experiments.knowledge_forgetting.analysis.results import Results
from experiments.knowledge_forgetting.analysis.studies import Point


def without_unlearnt(results: Results) -> Results:
    """Takes those sets out of the mean that no arm answers better than by chance.

    A set stays if any arm at any learning rate of the main grid is above its `chance` on validation items, as a mean
    over seeds. Test items have no say but in `chance`, which is theirs: result files tell no other, and the commonest
    answer may be commoner there than among the validation items.

    Args:
        results: All runs.

    Returns:
        The same runs, with such sets told as `Sets.uncounted`. If no set is learnt, or nothing was run, all count.
    """
    sets, points = results.sets, studies.frontier(studies.points_of(results.trained))
    learnt = tuple(name for name in sets.downstream if any(_right(p, name) > sets.chance[name] for p in points))
    if not learnt:
        return results
    uncounted = tuple(name for name in sets.downstream if name not in learnt)
    return dataclasses.replace(results, sets=dataclasses.replace(sets, downstream=learnt, uncounted=uncounted))


def _right(point: Point, name: str) -> float:
    accuracies = [run.accuracy["validation"][name] for run in point.runs.values()]
    return sum(accuracies) / len(accuracies)
