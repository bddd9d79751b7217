"""The base model of the tiny scale: `data/tiny_llama`, trained on with its own texts, more questions, and small skills.

    python -m experiments.knowledge_forgetting.tiny.base     # anew, in some five minutes on one core

It is made once, by the first run of the grid, and kept in `output/`. Weights depend on processor and torch version in
their last digits; each result file names the hash of those that it started from.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from pretrain import cut_into_batches, one_pass, tokenise, train
from sentencepiece import SentencePieceProcessor
from texts import question
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import Split, World

from experiments.knowledge_forgetting.tiny import REPO
from experiments.knowledge_forgetting.tiny.skills import SKILLS
from loramoe.training.files import filled_then_moved

START = REPO / "data" / "tiny_llama"
FOLDER = REPO / "output" / "knowledge_forgetting" / "tiny_base"
SEED = 2_000
PASSES = 16
SKILLS_PER_PASS = 4_000


def base_folder(world: World, split: Split) -> Path:
    """The folder of the base model, which is made if it is not there.

    Args:
        world: The world that it should know.
        split: Its parts: pretraining asks about `taught`.

    Returns:
        A folder for `from_pretrained`.
    """
    if not (FOLDER / "model.safetensors").is_file():
        _make(world, split)
    return FOLDER


def _make(world: World, split: Split) -> None:
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(START)
    with filled_then_moved(FOLDER, writer=True) as draft:
        train(model, _batches(world, split))
        AutoTokenizer.from_pretrained(START).save_pretrained(draft)
        model.save_pretrained(draft)


def _batches(world: World, split: Split) -> list[list[list[int]]]:
    """As pretraining's, each pass with all the questions that it may ask, and skills."""
    pieces = SentencePieceProcessor(model_file=str(START / "tokenizer.model"))
    rng = random.Random(SEED)
    everything: list[list[list[int]]] = []
    for _ in tqdm(range(PASSES), desc="texts", unit="pass"):
        documents = one_pass(rng, world, split)
        documents += [(question(fact), fact.answer) for fact in split.taught]
        documents += [rng.choice(SKILLS)(rng, world) for _ in range(SKILLS_PER_PASS)]
        batches = cut_into_batches([tokenise(pieces, document) for document in documents])
        rng.shuffle(batches)
        everything += batches
    return everything
