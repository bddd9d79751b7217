"""Base model against adapters, on questions from files, in one table.

    python -m loramoe.evaluate --adapter DIR [DIR …] --file test.json recall.json --output_dir output/evaluation

Each model answers every question: by likelihood (which of its choices, how likely its answer) and by generation (exact
match, F1). The base model is loaded once, and the adapters take turns on it. docs/evaluation.md says what is counted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from loramoe.data import TEMPLATES, choose_prompt_format
from loramoe.data.templates import tokenizer_hash
from loramoe.evaluation.adapters import check_kind, load_adapter_on
from loramoe.evaluation.results import Store, facts_of, fingerprint
from loramoe.evaluation.scoring import MEASURES, Prepared, Scores, Settings, prepare, score
from loramoe.evaluation.statistics import Line, summarise
from loramoe.evaluation.tasks import read_tasks, short_names
from loramoe.loading import BaseArguments, add_model_flags, base_name, load_base, load_tokenizer
from loramoe.utils import UsageError, positive

BASE = "base"


def evaluate(
    base: Any,
    tokenizer: Any,
    adapters: Mapping[str, str],
    tasks: Sequence[Prepared],
    settings: Settings,
    store: Store,
    batch_size: int = 32,
) -> list[Line]:
    """Asks the base model, then the adapters one after the other.

    Args:
        base: The base model.
        tokenizer: Its tokenizer.
        adapters: Folders of adapters by name.
        tasks: What to ask.
        settings: How to ask.
        store: Where scores are kept, and those of an earlier call are found.
        batch_size: Questions that are asked at once.

    Returns:
        The lines of the table.

    Raises:
        UsageError: If an adapter cannot be loaded on the base model, or a log-likelihood is not finite.
    """
    found: dict[str, dict[str, Scores]] = {task.task.name: {} for task in tasks}
    for name, folder in {BASE: None, **adapters}.items():
        earlier = {task.task.name: store.find(name, task) for task in tasks}
        with load_adapter_on(base, folder if None in earlier.values() else None) as model:
            for task in tasks:
                began, scores = perf_counter(), earlier[task.task.name]
                told = "found in " + str(store.folder)
                if scores is None:
                    scores = score(model, tokenizer, task, settings, batch_size)
                    store.keep(name, task, scores)
                    seconds = perf_counter() - began
                    told = f"{seconds:.1f} s ({len(scores) / seconds:.1f} questions/s)"
                print(f"{name}, {task.task.name}: {len(scores):,} questions, {told}", flush=True)
                found[task.task.name][name] = scores
    return [line for task in tasks for line in summarise(task.task.name, task.too_long, found[task.task.name])]


def main(argv: list[str] | None = None) -> None:
    """Evaluates what the command line names, writes the results and prints the table."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        adapters = _named(arguments.adapter)
        template = choose_prompt_format(arguments.template, list(adapters.values())).template
        settings = Settings(tuple(arguments.measure), template, arguments.max_new_tokens, arguments.max_seq_length)
        tasks = read_tasks(arguments.file)
        loading = _loading(arguments, base_name(arguments.base_model, list(adapters.values())))
        for adapter in adapters.values():
            check_kind(adapter)
        tokenizer = load_tokenizer(loading.base_model, list(adapters.values()))
        base = load_base(loading, arguments.device)
        positions = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        prepared = [prepare(task, tokenizer, settings, positions) for task in tasks]
        named = {BASE: loading.base_model, **adapters}
        models = {name: fingerprint(folder) for name, folder in named.items()}
        reading = {"device": str(base.device), "positions": positions, "tokenizer": tokenizer_hash(tokenizer)}
        store = Store(Path(arguments.output_dir), asdict(settings) | asdict(loading) | reading, models)
        store.check_writable()
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    try:
        lines = evaluate(base, tokenizer, adapters, prepared, settings, store, arguments.batch_size)
    except UsageError as error:
        parser.exit(1, f"{parser.prog}: {error} What is finished is kept in {store.folder}.\n")
    command = shlex.join(["python", "-m", "loramoe.evaluate", *(sys.argv[1:] if argv is None else argv)])
    print(f"\n{store.finish(lines, prepared, facts_of(base.device, command))}\nwritten to {store.folder}")


def _named(given: Sequence[str]) -> dict[str, str]:
    """Adapters by the names that `NAME=DIR` gives, or else by their folders."""
    pairs = [text.split("=", 1) if "=" in text and not Path(text).is_dir() else ["", text] for text in given]
    names = short_names([Path(name or folder) for name, folder in pairs])
    if BASE in names:
        raise ValueError(f"no adapter can be called {BASE!r}, as the base model is. Give another name: NAME=DIR.")
    return {name: folder for name, (_, folder) in zip(names, pairs, strict=True)}


def _loading(arguments: argparse.Namespace, name: str) -> BaseArguments:
    kept = ("dtype", "load_in_kbits", "quant_type", "double_quant")
    return BaseArguments(name, **{flag: getattr(arguments, flag) for flag in kept})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loramoe evaluate", description="Base model against adapters.")
    add = parser.add_argument
    add_model_flags(parser, adapter=False)
    add("--adapter", nargs="+", default=[], help="adapter folders, each DIR or NAME=DIR; default: the base model alone")
    add("--file", nargs="+", required=True, help="tasks: .json and .jsonl files, or folders of such")
    add("--output_dir", default="output/evaluation", help="folder of the results; what is finished there is not redone")
    add("--measure", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to measure; default: both")
    add("--template", "--prompt_template", choices=sorted(TEMPLATES), help="default: the template of the adapters")
    add("--batch_size", type=positive, default=32, help="questions that are asked at once")
    add("--max_new_tokens", type=positive, default=32, help="longest generated answer, in tokens")
    add("--max_seq_length", type=positive, help="most tokens of question and answer; default: the model's positions")
    add("--quant_type", choices=("nf4", "fp4"), default="nf4", help="4 bits: number format")
    add("--no_double_quant", dest="double_quant", action="store_false", help="4 bits: as trained without double_quant")
    return parser


if __name__ == "__main__":
    main()
