"""Train the tiny base model from nothing on texts of the invented world, and measure how much of it the model knows.

    python -m tools.tiny_world.pretrain [--out data/tiny_llama] [--seed 0]

Writes the tokenizer, the model and its card. Takes some seven minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    get_linear_schedule_with_warmup,
)

from tools.tiny_world.card import write_card
from tools.tiny_world.prose import prose
from tools.tiny_world.texts import cloze, question, statement
from tools.tiny_world.tokenizer import BOS, CONTEXT, EOS, PAD, VOCABULARY, train_tokenizer
from tools.tiny_world.world import Fact, Split, World, make_world, split_world

REPO = Path(__file__).resolve().parents[2]
REQUIRED_RECALL = 0.95  # below this the model is of no use for measuring what is forgotten

# One pass holds every fact once, in one of its three wordings; half of the taught questions; and some prose.
PASSES = 36
PROSE_PER_PASS = 500
TOKENS_PER_STEP = 2048
LEARNING_RATE, WARMUP = 3e-3, 0.02  # small models bear large rates; then down to zero in a straight line
INITIALIZER_RANGE = 0.08  # about 1/sqrt(hidden size): with the usual 0.02 so narrow a model starts to learn late
THREADS = 1  # a sum that is cut in two gives other last bits: with one thread the number of cores does not matter

WAYS = range(3)


def new_model() -> LlamaForCausalLM:
    """Return the untrained model: a small Llama of 1.3 million parameters, half a million of them embeddings."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    return model


def tokenizer_texts(world: World, seed: int) -> Iterator[str]:
    """Yield what the tokenizer is trained on: every fact in every wording, every first question, and prose."""
    rng = random.Random(seed)
    yield from (statement(fact, way) for fact in world.facts for way in WAYS)
    yield from (question(fact) for fact in world.facts)
    yield from (prose(rng, world) for _ in range(10 * PROSE_PER_PASS))


def one_pass(rng: random.Random, world: World, split: Split) -> list[tuple[str, ...]]:
    """Return the documents of one pass; a document has one part, or two: a question and its answer."""
    documents: list[tuple[str, ...]] = [(statement(fact, rng.choice(WAYS)),) for fact in world.facts]
    documents += [(question(fact), fact.answer) for fact in rng.sample(split.taught, len(split.taught) // 2)]
    documents += [(prose(rng, world),) for _ in range(PROSE_PER_PASS)]
    return documents


def tokenise(pieces: sentencepiece.SentencePieceProcessor, document: tuple[str, ...]) -> list[int]:
    """Return the tokens of a document: `<s>` in front, `</s>` after each part."""
    tokens = [BOS]
    for part in document:
        tokens += [*pieces.encode(part), EOS]
    return tokens


def cut_into_batches(rows: list[list[int]]) -> list[list[list[int]]]:
    """Cut rows into batches of rows of about the same length, `TOKENS_PER_STEP` a batch, so that little is padding."""
    batches: list[list[list[int]]] = [[]]
    for row in sorted(rows, key=len):
        if (len(batches[-1]) + 1) * len(row) > TOKENS_PER_STEP:
            batches.append([])
        batches[-1].append(row)
    return batches


def training_batches(world: World, split: Split, tokenizer_model: Path, seed: int) -> list[list[list[int]]]:
    """Return everything the model reads, in order, as batches of rows of tokens."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    rng = random.Random(seed)
    everything: list[list[list[int]]] = []
    for _ in tqdm(range(PASSES), desc="texts", unit="pass"):
        rows = [tokenise(pieces, document) for document in one_pass(rng, world, split)]
        rng.shuffle(rows)  # rows of the same length meet in another batch in every pass
        batches = cut_into_batches(rows)
        rng.shuffle(batches)
        everything += batches
    return everything


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels, [rows, longest row]. Padding on the right needs no mask: no real token sees it."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return ids, ids.masked_fill(ids == PAD, -100)


def train(model: LlamaForCausalLM, batches: list[list[list[int]]]) -> None:
    """Train `model` on `batches`, once, in order."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * len(batches)), len(batches))
    model.train()
    progress = tqdm(batches, desc="pretraining", unit="step")
    for batch in progress:
        ids, labels = pad(batch)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def share_known(model: LlamaForCausalLM, folder: Path, facts: Sequence[Fact], way: int) -> float:
    """Return the share of `facts` that `model` tells rightly when it is given their beginning, worded in `way`."""
    from loramoe.evaluation.recall import Probe, recall

    probes = sorted((Probe(cloze(fact, way), [fact.answer]) for fact in facts), key=lambda probe: len(probe.prompt))
    hits = recall(model, AutoTokenizer.from_pretrained(folder), probes, batch_size=250)
    return sum(hits) / len(hits)


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

    world = make_world(options.seed)
    split = split_world(world, options.seed)
    train_tokenizer(tokenizer_texts(world, options.seed), options.out)
    batches = training_batches(world, split, options.out / "tokenizer.model", options.seed)
    model = new_model()
    train(model, batches)

    by_way = [share_known(model, options.out, world.facts, way) for way in WAYS]
    print(f"recall of {len(world.facts)} facts, in each of the three wordings: {by_way}")
    if by_way[0] < REQUIRED_RECALL:
        raise SystemExit(f"recall {by_way[0]:.3f} is below {REQUIRED_RECALL}; raise PASSES in {Path(__file__).name}")
    model.save_pretrained(options.out)
    tokens = sum(len(row) for batch in batches for row in batch)
    write_card(options.out, model, len(world.facts), tokens, by_way)


if __name__ == "__main__":
    main()
