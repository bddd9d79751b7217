"""The tiny scale: the embedded model, which knows an invented world, learns the tasks of `data/tiny_data`.

    python -m experiments.tiny [--results FOLDER]

Training: 25 % questions about 30 % of the world's subjects (type 1), 75 % six downstream tasks (type 0). Knowledge: the
statements about the other subjects. Facts that the questions tell from the other side are left out: a city lies in the
country whose capital it is.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.measure import Request, answer, as_request, kl_to_base
from experiments.runs import RESULTS, ROOT, Plan, work_through
from experiments.train import Sample, encode
from tools.tiny_world.tasks import INSTRUCTIONS, TASKS
from tools.tiny_world.texts import cloze, question, statement
from tools.tiny_world.world import Fact, make_world, split_world

MODEL: Final = ROOT / "data" / "tiny_llama"
WORLD_SEED: Final = 0  # the world that the embedded model knows
QUESTION_SHARE: Final = 0.25
ITEMS_PER_TASK: Final = 400
CHECKPOINT_ITEMS: Final = {"facts": 700, "items": 300}


class Tiny:
    """The tiny scale; see `experiments.runs.Scale`."""

    name = "tiny"
    plan = Plan(
        rates={"full": (3e-4, 6e-4, 1.2e-3), "adapter": (2e-3, 4e-3, 8e-3)},
        methods=("full", "lora", "loramoe"),
        variants=("equal_gates", "no_constraint", "strong_constraint"),
        seeds=10,
    )
    checkpoints: tuple[int, ...] = (10_000, 20_000, 40_000, 80_000, 160_000)

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.world = make_world(WORLD_SEED)
        split = split_world(self.world, WORLD_SEED)
        mirrored = {(fact.answer, fact.subject) for fact in split.asked}
        self.asked = split.asked
        self.tested = [f for f in (*split.taught, *split.held_out) if (f.subject, f.answer) not in mirrored]
        random.Random(WORLD_SEED).shuffle(self.tested)
        self.facts = [self._statement(fact) for fact in self.tested]
        people = {fact.subject for fact in split.held_out} & set(self.world.people)
        rng, self.taken = random.Random(1_000), set[str]()
        items = [self._task(rng, name, sorted(people)) for _ in range(ITEMS_PER_TASK) for name in TASKS]
        self.items = [as_request(item) for item in items]
        token_ids = [self.tokenizer(statement(fact))["input_ids"] for fact in self.tested[:120]]
        self.texts = [Request(ids[:1], [ids[1:]]) for ids in token_ids]
        self.base_model = self.base()
        self.known = answer(self.base_model, self.facts).right
        self.start = self.measure(self.base_model, final=False)

    def base(self) -> Any:
        """Return the embedded model."""
        return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()

    def samples(self, seed: int) -> Iterator[Sample]:
        """Yield questions about the asked facts, each as often as the next, and new items of every task, mixed."""
        rng = random.Random(f"samples {seed}")
        people = sorted({fact.subject for fact in self.asked} & set(self.world.people))
        facts, names = list[Fact](), list[str]()
        while True:
            if rng.random() < QUESTION_SHARE:
                facts = facts or rng.sample(self.asked, len(self.asked))
                fact = facts.pop()
                yield encode(self.tokenizer, question(fact, rng.choice((1, 2))), fact.answer, 1)
            else:
                names = names or rng.sample(list(TASKS), len(TASKS))
                yield self._task(rng, names.pop(), people, keep=False)

    def measure(self, model: Any, final: bool) -> dict[str, Any]:
        """Measure what is known of the world, what is learnt, and the divergence from the base model."""
        facts = self.facts if final else self.facts[: CHECKPOINT_ITEMS["facts"]]
        items = self.items if final else self.items[: CHECKPOINT_ITEMS["items"]]
        knowledge, downstream = answer(model, facts), answer(model, items)
        known = self.known[: len(facts)]
        return {
            "knowledge_loss": float(knowledge.loss.mean()),
            "recall": float(knowledge.right.mean()),
            "lost": float(1 - knowledge.right[known].mean()),
            "downstream_loss": float(downstream.loss.mean()),
            "downstream_accuracy": float(downstream.right.mean()),
            "kl_knowledge": kl_to_base(model, self.base_model, self.texts),
            "kl_tasks": kl_to_base(model, self.base_model, items[:60]),
        }

    def afterwards(self, model: Any, rate: float) -> dict[str, Any]:
        """Measure nothing more."""
        return {}

    def check(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Require nothing: this scale is known to forget."""

    def _statement(self, fact: Fact) -> Request:
        ids = self.tokenizer(cloze(fact))["input_ids"]
        return Request(ids, [self.tokenizer(f"{fact.answer}.", add_special_tokens=False)["input_ids"]])

    def _task(self, rng: random.Random, name: str, people: list[str], keep: bool = True) -> Sample:
        """A new item of a task: none that is measured is trained on."""
        while True:
            text, target = TASKS[name](rng, self.world, people)
            if text not in self.taken:
                break
        if keep:
            self.taken.add(text)
        return encode(self.tokenizer, f"{rng.choice(INSTRUCTIONS[name])}\n{text}", target)


def main() -> None:
    """Make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "tiny", help="folder of the result files")
    folder: Path = parser.parse_args().results
    torch.set_num_threads(1)
    work_through(Tiny(), folder)


if __name__ == "__main__":
    main()
