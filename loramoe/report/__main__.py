"""`python -m loramoe.report`: which expert of an adapter does what on files of rows; a page, pictures and numbers."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from loramoe.data import TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.loading import (
    BaseArguments,
    add_model_flags,
    base_name,
    fill_positional,
    load_model,
    load_tokenizer,
)
from loramoe.report.card import public_name
from loramoe.report.measures import MIN_COUNT, TOP, measure
from loramoe.report.page import Source
from loramoe.report.pictures import shares_in_words
from loramoe.report.routing import observe, routed
from loramoe.report.tokens import text_of
from loramoe.report.write import PAGE, check_folder, write_pages

_AT_LEAST_ONE = ("batch_size", "min_count", "top")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loramoe report",
        description="Tell which expert of a LoRAMoE adapter does what: one pass over rows, one page.",
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="ADAPTER", help="older form of --adapter")
    add_model_flags(parser)
    add("--data", required=True, metavar="FILE", help="file or folder of rows to observe it on")
    add("--output_dir", "--out", default="output/experts", metavar="DIR", help="folder of the page")
    add("--rows", type=int, help="most rows to run, evenly spaced in the files; default: all")
    add("--batch_size", type=int, default=8, help="rows at once")
    add("--max_seq_length", type=int, help="longest row in tokens, prompt and answer; default: that of the training")
    add("--template", "--prompt_template", choices=sorted(TEMPLATES), help="default: the template of the training")
    add("--min_count", type=int, default=MIN_COUNT, help="how often a token has to occur to be told of")
    add("--top", type=int, default=TOP, help="most tokens to tell of each expert in each third of the layers")
    return parser


def _samples(arguments: argparse.Namespace, tokenizer: Any) -> Any:
    layout = choose_prompt_format(arguments.template, [arguments.adapter])
    longest = layout.max_seq_length if arguments.max_seq_length is None else arguments.max_seq_length
    samples, report = tokenise_dataset(arguments.data, tokenizer, template=layout.template, max_seq_length=longest)
    print(f"{arguments.data}: {report}")
    return evenly_spaced(samples, arguments.rows)


def _report(arguments: argparse.Namespace) -> str:
    """Writes the page; everything that can be wrong with the flags comes before the model is loaded."""
    for name in (*_AT_LEAST_ONE, *(["rows"] if arguments.rows is not None else [])):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={getattr(arguments, name)}. Raise it.")
    folder = Path(arguments.output_dir)
    check_folder(folder)
    name = base_name(arguments.base_model, [arguments.adapter])
    loading = BaseArguments(name, dtype=arguments.dtype, load_in_kbits=arguments.load_in_kbits)
    tokenizer = load_tokenizer(name, [arguments.adapter])
    samples = _samples(arguments, tokenizer)
    batches: DataLoader[Any] = DataLoader(samples, arguments.batch_size, collate_fn=SftCollator(pad_id(tokenizer)))
    model = load_model(loading, arguments.adapter, arguments.device)
    config = routed(model).config
    routing = observe(model, batches)
    measures = measure(routing, partial(text_of, tokenizer), arguments.min_count, arguments.top)
    source = Source(public_name(arguments.adapter), public_name(name), Path(arguments.data).resolve().name, config)
    write_pages(measures, source, folder)
    said = [f"constraint in training: {source.constraint}", shares_in_words(measures)]
    return "\n".join([*filter(None, said), f"wrote {folder / PAGE}"])


def main(argv: list[str] | None = None) -> int:
    """Command line of the report.

    Args:
        argv: Arguments; by default the process's own.

    Returns:
        Exit code: 0 if the page was written, 1 if not.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    fill_positional(parser, arguments, "adapter")
    try:
        print(_report(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
