"""The choice of relations."""

from __future__ import annotations

import numpy as np

from experiments.knowledge_forgetting.real import relations
from experiments.knowledge_forgetting.real.relations import choose, measure


def test_rule():
    found = {
        "P1": {"accuracy": 0.5, "items": 20},
        "P2": {"accuracy": 0.49, "items": 90},
        "P3": {"accuracy": 1.0, "items": 19},
    }
    assert choose(found) == ["P1"]


def test_only_selection_is_looked_at(data, monkeypatch):
    asked = []

    def right(model, tokenizer, items, measure, progress):
        asked.extend(item.prompt for item in items)
        return np.array([True, *[False] * (len(items) - 1)])

    monkeypatch.setattr(relations, "score", right)
    found = measure(None, None, data)
    assert list(found) == ["P17", "P36"]
    wanted = [item.prompt for name in found for item in relations.relation_items(data, name, "selection")]
    assert asked == wanted
    assert found["P36"]["accuracy"] == round(1 / found["P36"]["items"], 4)
