"""ReCoRD: which entity of a passage makes a query with a blank likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loramoe.evaluation.answers import exact_match, f1


def entities(doc: dict[str, Any]) -> list[str]:
    """The different entities of a passage."""
    return sorted(set(doc["entities"]))


def doc_to_text(doc: dict[str, Any]) -> str:
    """The passage, then its highlights as a list, which the completed query continues."""
    text, *highlights = doc["passage"].strip().split("\n@highlight\n")
    return text + "\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    """The query with each entity in its blank."""
    return [f"  - {doc['query'].replace('@placeholder', entity)}" for entity in entities(doc)]


def doc_to_target(doc: dict[str, Any]) -> str:
    """The query with the first right entity in its blank."""
    return f"  - {doc['query'].replace('@placeholder', min(doc['answers']))}"


def process_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Exact match and F1 of the likeliest entity."""
    likelihoods = [likelihood for likelihood, _ in results]
    chosen = entities(doc)[likelihoods.index(max(likelihoods))]
    return {"f1": f1(chosen, doc["answers"]), "em": exact_match(chosen, doc["answers"])}
