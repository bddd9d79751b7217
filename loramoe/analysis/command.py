"""`loramoe report`: which expert of an adapter serves which task type, on samples from a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from loramoe.analysis.report import NUMBERS, PAGE, ReportInfo, write_report
from loramoe.analysis.routing import collect_routing
from loramoe.data import TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.loading import adapter_folder, add_model_flags, base_name, load_from_flags, load_tokenizer
from loramoe.utils import check_output_dir, positive, public_name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loramoe report", description=__doc__)
    add = parser.add_argument
    add("--adapter", required=True, help="adapter folder or hub name")
    add_model_flags(parser, adapter=False)
    add("--file", "--data", required=True, help="file or folder of samples")
    add("--output_dir", default="output/experts", help="folder of the report; default: %(default)s")
    add("--overwrite", action="store_true", help="replace a report that is in output_dir")
    add("--limit", type=positive, help="most samples to run, evenly spaced in the file; default: all")
    add("--batch_size", type=positive, default=8, help="samples at once; default: %(default)s")
    add("--max_seq_length", type=positive, help="most tokens of a sample; default: as in the training")
    add("--template", "--prompt_template", choices=sorted(TEMPLATES), help="default: as in the training")
    return parser


def _report(flags: argparse.Namespace) -> str:
    """Writes the report; everything that can be wrong with the flags is checked before the model is loaded."""
    folder = Path(flags.output_dir)
    check_output_dir(folder, flags.overwrite, NUMBERS)
    adapter = public_name(flags.adapter)
    flags.adapter = adapter_folder(flags.adapter)
    name = base_name(flags.base_model, [flags.adapter])
    tokenizer = load_tokenizer(name, [flags.adapter])
    prompt_format = choose_prompt_format(flags.template, [flags.adapter])
    length = flags.max_seq_length or prompt_format.max_seq_length
    samples, found = tokenise_dataset(flags.file, tokenizer, template=prompt_format.template, max_seq_length=length)
    print(f"{flags.file}: {found}")
    collate = SftCollator(pad_id(tokenizer))
    batches: DataLoader[Any] = DataLoader(evenly_spaced(samples, flags.limit), flags.batch_size, collate_fn=collate)
    model, _ = load_from_flags(flags)
    stats = collect_routing(model, batches)
    info = ReportInfo(
        adapter, public_name(name), public_name(flags.file), model.active_peft_config, prompt_format.type_names
    )
    return f"{write_report(stats, info, folder)}\nwrote {folder / PAGE}"


def main(argv: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code: 0 if the report was written, 1 if not."""
    flags = _parser().parse_args(argv)
    try:
        print(_report(flags))
    except (ValueError, OSError, ImportError) as error:
        print(f"loramoe report: {error}", file=sys.stderr)
        return 1
    return 0
