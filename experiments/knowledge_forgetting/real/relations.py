"""Chooses the relations of T-REx that the base model knows something about, and writes them into `relations.json`.

    python -m experiments.knowledge_forgetting.real.relations --data FOLDER [--model FOLDER]

The rule: at least 20 items in the part `selection` of the subjects, and at least half of them right, which is twice
chance. No item of that part is in a validation or test set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.knowledge_forgetting.real.cloze import CHOICE, all_relations, relation_items
from experiments.knowledge_forgetting.real.scale import MODEL
from experiments.knowledge_forgetting.real.score import score

LEAST_ITEMS: Final = 20
MOST_ITEMS: Final = 100
LEAST_ACCURACY: Final = 0.5


def measure(model: Any, tokenizer: Any, data: Path) -> dict[str, dict[str, float]]:
    """The base model's accuracy on the part `selection` of each relation, and the number of items."""
    found = {}
    for relation in tqdm(all_relations(data), desc="relations", unit="relation"):
        items = relation_items(data, relation, "selection")[:MOST_ITEMS]
        if items:
            right = score(model, tokenizer, items, "total", progress=False)
            found[relation] = {"accuracy": round(float(right.mean()), 4), "items": len(items)}
    return found


def choose(found: dict[str, dict[str, float]]) -> list[str]:
    """The relations that fulfil the rule."""
    return [name for name, of in found.items() if of["items"] >= LEAST_ITEMS and of["accuracy"] >= LEAST_ACCURACY]


def main() -> None:
    """Command line; see the module's own words."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public data sets")
    parser.add_argument("--model", type=Path, default=MODEL, help="base model, as scripts/get_smollm2.sh makes it")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    found = measure(model, AutoTokenizer.from_pretrained(args.model), args.data)
    rule = f"at least {LEAST_ITEMS} items of the part 'selection' and accuracy {LEAST_ACCURACY} (chance 0.25)"
    told = {"rule": rule, "model": args.model.name, "chosen": choose(found), "selection": found}
    CHOICE.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{CHOICE}: {len(told['chosen'])} of {len(found)} relations: {' '.join(told['chosen'])}")


if __name__ == "__main__":
    main()
