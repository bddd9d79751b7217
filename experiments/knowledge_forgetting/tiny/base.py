"""The base model of the tiny scale: `data/tiny_llama`, trained on with its own texts, more questions, and small skills.

    python -m experiments.knowledge_forgetting.tiny.base     # anew, in some six minutes on one core

It is made once, by the first run of the grid, and kept in `output/`. Weights depend on processor and torch version in
their last digits; each result file names the hash of those that it started from.
"""

from __future__ import annotations

import random

import torch
from pretrain import cut_into_batches, one_pass, tokenise, train
from sentencepiece import SentencePieceProcessor
from texts import question
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import Fact, World, make_world, split_world

from experiments.knowledge_forgetting.tiny import REPO
from experiments.knowledge_forgetting.tiny.skills import SKILLS
from loramoe.utils import atomic_save_dir

START = REPO / "data" / "tiny_llama"
FOLDER = REPO / "output" / "knowledge_forgetting" / "tiny_base"
WEIGHTS = "model.safetensors"  # written last
WORLD_SEED = 0  # the world that data/tiny_llama knows
SEED = 2_000  # of the texts; far from the seeds of training rows
PASSES = 20
SKILLS_PER_PASS = 6_000


def make_base() -> None:
    """Trains the base model and writes it to `FOLDER`, if it is not there.

    It is asked, in training, about all facts that knowledge will be tested on, so that what is lost later is knowledge
    and not a way of asking that it never had.
    """
    if (FOLDER / WEIGHTS).is_file():
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, the last bits would depend on their number
    torch.manual_seed(SEED)
    world = make_world(WORLD_SEED)
    taught, _, held_out = split_world(world, WORLD_SEED)
    model = AutoModelForCausalLM.from_pretrained(START)
    train(model, _batches(world, [*taught, *held_out]))
    with atomic_save_dir(FOLDER, last=WEIGHTS) as draft:
        AutoTokenizer.from_pretrained(START).save_pretrained(draft)
        model.save_pretrained(draft)
    torch.set_num_threads(threads)


def _batches(world: World, asked: list[Fact]) -> list[list[list[int]]]:
    """As pretraining's, each pass with half of the questions that it may ask, and skills."""
    pieces = SentencePieceProcessor(model_file=str(START / "tokenizer.model"))
    split = split_world(world, WORLD_SEED)
    rng = random.Random(SEED)
    everything: list[list[list[int]]] = []
    for _ in tqdm(range(PASSES), desc="texts", unit="pass"):
        documents = one_pass(rng, world, split)
        documents += [(question(fact), fact.answer) for fact in rng.sample(asked, len(asked) // 2)]
        documents += [rng.choice(SKILLS)(rng, world) for _ in range(SKILLS_PER_PASS)]
        batches = cut_into_batches([tokenise(pieces, document) for document in documents])
        rng.shuffle(batches)
        everything += batches
    return everything


if __name__ == "__main__":
    (FOLDER / WEIGHTS).unlink(missing_ok=True)
    make_base()
