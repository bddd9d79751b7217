"""The real-text experiment: SmolLM2-135M, healed, learns 18 reasoning tasks and French summaries.

    python -m experiments.real heal --trex FOLDER     # once: output/smollm2_healed
    python -m experiments.real run --trex FOLDER      # the grid; resumes; one file a run in experiments/results/real

Training: 37.5 % reasoning-gym and 37.5 % French summaries (type 0), 25 % English descriptions (type 1) of titles of
half A; half B is for measuring.
Knowledge: four-way log-loss of T-REx statements. See REGISTERED.md for the contrast and the gates.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.measure import Answers, Request, answer, as_request, kl_to_base
from experiments.real_data import FOLDER, Cloze, Puzzle, clozes, half_of, read_articles, read_puzzles, subjects
from experiments.runs import RESULTS, ROOT, Plan, load_results, work_through, write_halves
from experiments.train import Sample, encode, train

MODEL: Final = ROOT / "models" / "smollm2-135m"
HEALED: Final = ROOT / "output" / "smollm2_healed"
HEALING: Final = "healing.json"  # in both folders: how the model was healed
TEXT_TOKENS: Final = 64  # of a summary that is measured
SMALL, LARGE = 640, 3_200  # T-REx items at checkpoints, at the end
NEEDED_LOSS: Final = 0.15  # nats of English that full fine-tuning must lose, or the grid cannot distinguish methods
SHARES: Final = (("gym", 0.375), ("french", 0.375), ("english", 0.25))
HEALING_RATE, HEALING_STEP, HEALED_TOKENS, MOST_HEALING = 1e-4, 50_000, 300_000, 600_000
RELEARNING_STEPS, RELEARNING_STATEMENTS = 30, 240


class Real:
    """The real scale; see `experiments.runs.Scale`.

    Args:
        model: Folder of the healed base model.
        data: Folder that `experiments.real_data` wrote.
        trex: Folder of T-REx.
        tokens: Training tokens; the checkpoints are at fixed shares of them.
    """

    name = "real"
    plan = Plan(
        rates={"full": (1e-4, 3e-4, 6e-4), "adapter": (1e-3, 3e-3, 6e-3)},
        methods=("full", "lora", "loramoe", "equal_gates", "no_constraint"),
        variants=(),
        seeds=3,
    )

    def __init__(self, model: Path, data: Path, trex: Path, tokens: int = 120_000) -> None:
        self.model, self.data, self.trex = model, data, trex
        self.checkpoints = tuple(round(tokens * share / 120) for share in (8, 15, 30, 60, 120))
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        asked = subjects(trex)
        english, french = (
            [a for a in read_articles(data, name) if a.title not in asked] for name in ("english", "french")
        )
        self.puzzles, self.french = read_puzzles(data), french
        self.described = [article for article in english if half_of(article.title) == "A"]
        rng = random.Random("measured")
        halves = [[a for a in articles if half_of(a.title) == "B"] for articles in (english, french)]
        self.heldout, heldout_french = (rng.sample(half, min(200, len(half))) for half in halves)
        self.statements = [self._cloze(item) for item in clozes(trex, "test")[:LARGE]]
        self.practice = clozes(trex, "practice")[:RELEARNING_STATEMENTS]
        self.english = [self._text(article.summary) for article in self.heldout]
        self.summaries = [as_request(self._french(article)) for article in heldout_french]
        self.gym = [as_request(self._puzzle(p)) for p in self.puzzles if p.part == "test"]
        self.base_model = self.base()
        self.known = answer(self.base_model, self.statements).right
        self.start = self.measure(self.base_model, final=False)

    def base(self) -> Any:
        """Return the healed model."""
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()

    def samples(self, seed: int) -> Iterator[Sample]:
        """Yield samples of the three kinds in random order; none that is measured."""
        rng = random.Random(f"samples {seed}")
        pools: dict[str, list[Any]] = {
            "gym": [puzzle for puzzle in self.puzzles if puzzle.part == "train"],
            "french": [article for article in self.french if half_of(article.title) == "A"],
            "english": self.described,
        }
        decks = {name: list[Any]() for name in pools}
        encoders = {"gym": self._puzzle, "french": self._french, "english": self._description}
        names, shares = zip(*SHARES, strict=True)
        while True:
            (name,) = rng.choices(names, shares)
            decks[name] = decks[name] or rng.sample(pools[name], len(pools[name]))
            yield encoders[name](decks[name].pop())

    def measure(self, model: Any, final: bool) -> dict[str, Any]:
        """Measure T-REx and English, French and gym, and the divergence from the base model."""
        trex = answer(model, self.statements if final else self.statements[:SMALL])
        few = slice(None) if final else slice(0, 60)
        english, french = (answer(model, items[few]) for items in (self.english, self.summaries))
        gym = answer(model, self.gym if final else self.gym[::2])
        known = self.known[: len(trex.right)]
        return {
            "knowledge_loss": float(trex.loss.mean()),
            "knowledge_items": write_halves(trex.loss),
            "recall": float(trex.right.mean()),
            "lost": float(1 - trex.right[known].mean()),
            "english_loss": per_token(english),
            "french_loss": per_token(french),
            "gym_loss": per_token(gym),
            "downstream_loss": (per_token(french) + per_token(gym)) / 2,
            "gym_exact": float(gym.right.mean()),
            "kl_knowledge": kl_to_base(model, self.base_model, self.english[:24]),
            "kl_tasks": kl_to_base(model, self.base_model, [*self.summaries[:12], *self.gym[::15][:12]]),
        }

    def afterwards(self, model: Any, rate: float) -> dict[str, Any]:
        """Measure a second set of knowledge, then teach 240 statements and ask T-REx again: is the form forgotten?"""
        descriptions = answer(model, list(self._descriptions()))
        practised = [self._cloze(item) for item in self.practice]
        statements = [Sample(request.prompt, request.candidates[request.right], 1) for request in practised]
        stream = [sample for _ in range(RELEARNING_STEPS) for sample in statements][: RELEARNING_STEPS * 16]
        tokens = sum(len(sample.prompt) + len(sample.target) for sample in stream)
        train(model, stream, rate, [tokens], lambda _: None)
        again = answer(model, self.statements[:SMALL])
        return {
            "descriptions_loss": float(descriptions.loss.mean()),
            "descriptions_right": float(descriptions.right.mean()),
            "relearnt": {"knowledge_loss": float(again.loss.mean()), "recall": float(again.right.mean())},
        }

    def check(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Stop if full fine-tuning at all three rates loses less English than needed to distinguish methods."""
        full = [result["checkpoints"] for result in results if result["method"] == "full" and result["seed"] == 0]
        if len(full) == len(self.plan.rates["full"]):
            lost = max(points[-1]["english_loss"] - points[0]["english_loss"] for points in full)
            if lost < NEEDED_LOSS:
                raise SystemExit(
                    f"full fine-tuning loses {lost:.3f} nats of English, less than the registered {NEEDED_LOSS}: "
                    f"methods cannot be distinguished. Start again with --tokens {2 * self.checkpoints[-1]}."
                )

    def _text(self, text: str) -> Request:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
        return Request([self.tokenizer.unk_token_id], [ids])  # <|endoftext|>, which separates SmolLM2's documents

    def _cloze(self, item: Cloze) -> Request:
        candidates = [self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in item.candidates]
        return Request(self.tokenizer(item.prompt)["input_ids"], candidates, item.right)

    def _descriptions(self) -> Iterator[Request]:
        """Half-B titles, each with its description among the three of one topic that are nearest in length."""
        for article in self.heldout:
            length = len(article.description)
            others = {a.description for a in self.heldout if a.topic == article.topic} - {article.description}
            nearest = sorted(others, key=lambda text: (abs(len(text) - length), text))[:3]
            if len(nearest) == 3:
                yield self._cloze(Cloze(f"{article.title}:", (article.description, *nearest), 0))

    def _puzzle(self, puzzle: Puzzle) -> Sample:
        return encode(self.tokenizer, puzzle.question, puzzle.answer)

    def _french(self, article: Any) -> Sample:
        return encode(self.tokenizer, f"Résume l'article « {article.title} ».", article.summary)

    def _description(self, article: Any) -> Sample:
        return encode(self.tokenizer, f"What or who is {article.title}?", article.description, 1)


def per_token(answers: Answers) -> float:
    """Mean loss in nats per token of the targets."""
    return float(answers.loss.sum() / answers.tokens.sum())


def heal(model_folder: Path, data: Path, trex: Path, out: Path, log: Any = print) -> dict[str, Any]:
    """Fully fine-tune on English summaries of half A until 50 more steps change T-REx by less than a standard error.

    Args:
        model_folder: SmolLM2 as unpacked.
        data: Folder that `experiments.real_data` wrote.
        trex: Folder of T-REx; the part `gate`, which no measure asks about.
        out: Where to save the model.
        log: Called with one line a checkpoint.

    Returns:
        What the file HEALING holds: losses by tokens, the hash of the weights.

    Raises:
        SystemExit: If the gate is not passed after MOST_HEALING tokens.
    """
    scale = Real(model_folder, data, trex)
    gate = [scale._cloze(item) for item in clozes(trex, "gate")[:SMALL]]
    torch.manual_seed(0)
    model, losses = scale.base(), [answer(scale.base_model, gate).loss]
    curve: list[dict[str, float]] = []

    def flat(tokens: int) -> bool:
        losses.append(answer(model, gate).loss)
        change = losses[-1] - losses[-2]
        error = float(change.std(ddof=1) / len(change) ** 0.5)
        point = {"tokens": tokens, "trex_loss": losses[-1].mean(), "change": change.mean(), "standard_error": error}
        english = per_token(answer(model, scale.english))
        curve.append({name: float(value) for name, value in point.items()} | {"english_loss": english})
        log(str(curve[-1]))
        return tokens >= HEALED_TOKENS and abs(curve[-1]["change"]) < error

    rng = random.Random("healing")
    stream = (scale._text(a.summary) for _ in range(99) for a in rng.sample(scale.described, len(scale.described)))
    samples = (Sample(request.prompt, request.candidates[0], 1) for request in stream)
    train(model, samples, HEALING_RATE, range(HEALING_STEP, MOST_HEALING + 1, HEALING_STEP), flat)
    if abs(curve[-1]["change"]) >= curve[-1]["standard_error"]:
        raise SystemExit(f"the gate is not passed after {MOST_HEALING} tokens: {curve[-1]}. Lower HEALING_RATE.")
    model.save_pretrained(out)
    scale.tokenizer.save_pretrained(out)
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    report = {"curve": curve, "sha256": weights, "rate": HEALING_RATE}
    (out / HEALING).write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


def use_bfloat16(folder: Path) -> bool:
    """Whether to compute in bfloat16: as the results in a folder did, else if this processor multiplies it faster."""
    made = {result["made_with"]["precision"] for result in load_results(folder)}
    if made:
        return made == {"bfloat16"}
    seconds = {}
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(512, 512, dtype=dtype)
        x @ x
        start = time.perf_counter()
        for _ in range(5):
            x @ x
        seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def main() -> None:
    """Heal the model, or make the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["heal", "run"])
    parser.add_argument("--trex", type=Path, default=os.environ.get("TREX"), help="folder of T-REx; default: $TREX")
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder that experiments.real_data wrote")
    parser.add_argument("--model", type=Path, help=f"default: {MODEL.name} to heal, {HEALED.name} to run")
    parser.add_argument("--out", type=Path, help="folder of the healed model, or of the result files")
    parser.add_argument("--tokens", type=int, default=120_000, help="training tokens of a run")
    options = parser.parse_args()
    if options.trex is None:
        parser.error("expected --trex FOLDER or TREX: T-REx facts and patterns of github.com/yanaiela/pararel")
    healing = options.what == "heal"
    model, folder = (
        options.model or (MODEL if healing else HEALED),
        options.out or (HEALED if healing else RESULTS / "real"),
    )
    needed, command = (
        ("config.json", "bash scripts/get_smollm2.sh") if healing else (HEALING, "python -m experiments.real heal")
    )
    if not (model / needed).is_file():
        parser.error(f"{model} has no {needed}: run `{command}` first, or pass --model")
    torch.set_num_threads(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16(folder)):
        if healing:
            heal(model, options.data, options.trex, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(model / HEALING, folder)
            work_through(Real(model, options.data, options.trex, options.tokens), folder)


if __name__ == "__main__":
    main()
