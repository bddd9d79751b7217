"""Train the tiny base model from nothing on texts of the invented world, and measure how much of it the model knows.

    python scripts/tiny_world/pretrain.py [--out data/tiny_llama] [--seed 0]

Writes the tokenizer, the model and its card. Takes a few minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
import torch
from card import write_card
from prose import prose
from recall import recall
from texts import STATEMENTS, cloze, question, statement
from tokenizer import CONTEXT, VOCABULARY, train_tokenizer
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from world import Split, World, make_world, split_world

REPO = Path(__file__).resolve().parents[2]
REQUIRED_RECALL = 0.95  # below this the model is of no use for measuring what is forgotten

# One pass holds every fact once, in one of its three wordings; every question of the taught part once; and some prose.
PASSES = 40
PROSE_PER_PASS = 1000
BLOCK = 128  # tokens of a training sequence: documents follow each other, as in any pretraining
BATCH = 32  # sequences of a step: 4,096 tokens
LEARNING_RATE, WARMUP = 4e-3, 0.05  # small models bear large rates; then cosine to zero
WEIGHT_DECAY = 0.01
THREADS = 2  # sums in another order give other last bits, so the number is fixed

WAYS = range(3)


def new_model() -> LlamaForCausalLM:
    """Return the untrained model: 1.2 million parameters, one of the two narrowest shapes that reach the recall."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=3,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=3, max_length=CONTEXT)
    return model


def tokenizer_texts(world: World, seed: int) -> Iterator[str]:
    """Yield what the tokenizer is trained on: every fact in every wording, every first question, and prose."""
    rng = random.Random(seed)
    yield from (statement(fact, way) for fact in world.facts for way in WAYS)
    yield from (question(fact) for fact in world.facts)
    yield from (prose(rng, world) for _ in range(10 * PROSE_PER_PASS))


def one_pass(rng: random.Random, world: World, split: Split) -> list[tuple[str, ...]]:
    """Return the documents of one pass in random order; a document has one part, or question and answer."""
    documents: list[tuple[str, ...]] = [(statement(fact, rng.choice(WAYS)),) for fact in world.facts]
    documents += [(question(fact), fact.answer) for fact in split.taught]
    documents += [(prose(rng, world),) for _ in range(PROSE_PER_PASS)]
    rng.shuffle(documents)
    return documents


def tokenise(pieces: sentencepiece.SentencePieceProcessor, documents: Sequence[tuple[str, ...]]) -> list[int]:
    """Return the documents as one row of tokens: `<s>` in front of each, `</s>` after each part."""
    row: list[int] = []
    for document in documents:
        row.append(pieces.bos_id())
        for part in document:
            row += [*pieces.encode(part), pieces.eos_id()]
    return row


def training_blocks(world: World, split: Split, tokenizer_model: Path, seed: int) -> torch.Tensor:
    """Return everything the model reads, in order: [sequences, BLOCK] token ids."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    rng = random.Random(seed)
    row: list[int] = []
    for _ in tqdm(range(PASSES), desc="texts", unit="pass"):
        row += tokenise(pieces, one_pass(rng, world, split))
    return torch.tensor(row[: len(row) // BLOCK * BLOCK]).view(-1, BLOCK)


def train(model: LlamaForCausalLM, blocks: torch.Tensor) -> None:
    """Train `model` on `blocks`, once, in order."""
    batches = blocks.split(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=len(batches), pct_start=WARMUP, cycle_momentum=False
    )
    model.train()
    progress = tqdm(batches, desc="pretraining", unit="step")
    for batch in progress:
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write.

    Raises:
        SystemExit: the model knows less than `REQUIRED_RECALL` of the world; nothing but the tokenizer is written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "data" / "tiny_llama", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="which world, and which draw of the initial weights")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(THREADS)
    start = time.monotonic()

    world = make_world(options.seed)
    split = split_world(world, options.seed)
    train_tokenizer(tokenizer_texts(world, options.seed), options.out)
    blocks = training_blocks(world, split, options.out / "tokenizer.model", options.seed)
    model = new_model()
    train(model, blocks)

    tokenizer = AutoTokenizer.from_pretrained(options.out)
    by_way = [recall(model, tokenizer, [(cloze(fact, way), fact.answer) for fact in world.facts]) for way in WAYS]
    print(f"recall of {len(world.facts)} facts, in each of the three wordings: {by_way}")
    if by_way[0] < REQUIRED_RECALL:
        raise SystemExit(f"recall {by_way[0]:.3f} is below {REQUIRED_RECALL}; raise PASSES in {Path(__file__).name}")
    model.save_pretrained(options.out)
    write_card(options.out, model, len(world.facts), blocks.numel(), by_way, time.monotonic() - start)


if __name__ == "__main__":
    main()
