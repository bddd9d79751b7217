"""`loramoe export`: an adapter's folder to that of a stand-alone model, or of a plain LoRA, calibrated and measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from loramoe.data import IGNORE_INDEX, TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.evaluation.recall import read_probes
from loramoe.export.run import export_lora, refuse_used
from loramoe.loading import (
    BaseArguments,
    add_model_flags,
    base_name,
    fill_positional,
    load_model,
    load_tokenizer,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loramoe export",
        description="Write a LoRAMoE adapter as a model of its own, or as a plain LoRA, which approximates it.",
    )
    parser.add_argument("words", nargs="*", metavar="ADAPTER OUT", help="older form of --adapter and --output_dir")
    add_model_flags(parser)
    parser.add_argument("--output_dir", help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--format",
        choices=("lora", "hf"),
        default="lora",
        help="lora: plain LoRA, needs --calibration; hf: base model, router and experts in one Hugging Face folder",
    )
    parser.add_argument("--link_base", action="store_true", help="hf: link the base model's files, do not copy them")
    parser.add_argument("--calibration", help="lora: file or folder of rows to average the gates over")
    parser.add_argument("--test", help="file or folder of held-out rows to measure on; default: the calibration rows")
    parser.add_argument("--recall_file", help='JSON list of {"prompt", "answer"}: facts whose recall to measure')
    parser.add_argument("--calibration_rows", type=int, default=1000, help="most rows to average over, evenly spaced")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_seq_length", type=int, help="longest row in tokens; default: that of the training")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="prompt layout; default: that of the training")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at OUT")
    return parser


def _collate(collator: SftCollator, max_seq_length: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A batch in which no row that fills max_seq_length has labels: cut there, its answer would be measured as whole.

    Such rows still count among all tokens; the report tells the number of rows of either kind.
    """
    unlabelled = {"labels": [IGNORE_INDEX] * max_seq_length}
    return collator([{**row, **(unlabelled if len(row["input_ids"]) == max_seq_length else {})} for row in rows])


def _batches(arguments: argparse.Namespace, tokenizer: Any, path: str, most: int | None = None) -> DataLoader[Any]:
    """The rows of a path as batches; of more than `most` rows so many, evenly spaced, as files may be sorted."""
    settings = {"template": arguments.template, "max_seq_length": arguments.max_seq_length}
    rows, report = tokenise_dataset(path, tokenizer, **settings)
    print(f"{path}: {report}")
    collate = partial(_collate, SftCollator(pad_id(tokenizer)), arguments.max_seq_length)
    return DataLoader(evenly_spaced(rows, most), batch_size=arguments.batch_size, collate_fn=collate)


def _check_format(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.format == "lora" and not arguments.calibration:
        parser.error("--format lora needs --calibration")
    if arguments.format == "lora" and arguments.link_base:
        parser.error("--link_base belongs to --format hf. Leave it out")
    for name in ("calibration", "test", "recall_file", "template", "max_seq_length", "device"):
        if arguments.format == "hf" and getattr(arguments, name) is not None:
            parser.error(f"--{name} belongs to --format lora. Leave it out")


def _export_model(arguments: argparse.Namespace) -> None:
    from loramoe.serving.export import export_model

    if arguments.load_in_kbits != 16:
        raise ValueError(f"a quantised base model cannot be exported; got load_in_kbits={arguments.load_in_kbits}.")
    export_model(
        arguments.adapter,
        arguments.output_dir,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
        link_base=arguments.link_base,
        overwrite=arguments.overwrite,
    )
    print(f"wrote {arguments.output_dir}; load it with AutoModelForCausalLM.from_pretrained after import loramoe")


def _export_lora(arguments: argparse.Namespace) -> None:
    for name in ("calibration_rows", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={getattr(arguments, name)}. Raise it.")
    out = Path(arguments.output_dir)
    refuse_used(out, arguments.overwrite)
    layout = choose_prompt_format(arguments.template, [arguments.adapter])
    arguments.template = layout.template
    if arguments.max_seq_length is None:
        arguments.max_seq_length = layout.max_seq_length
    probes = read_probes(arguments.recall_file) if arguments.recall_file else []
    name = base_name(arguments.base_model, [arguments.adapter])
    loading = BaseArguments(name, dtype=arguments.dtype, load_in_kbits=arguments.load_in_kbits)
    tokenizer = load_tokenizer(name, [arguments.adapter])
    model = load_model(loading, arguments.adapter, arguments.device)
    report = export_lora(
        model,
        out,
        _batches(arguments, tokenizer, arguments.calibration, arguments.calibration_rows),
        _batches(arguments, tokenizer, arguments.test) if arguments.test else None,
        tokenizer=tokenizer,
        probes=probes,
        source=arguments.adapter,
        overwrite=arguments.overwrite,
    )
    print(f"{report}\n\nwrote {out}, an approximation; read {out / 'README.md'} before you use it")


def main(argv: list[str] | None = None) -> int:
    """Command line of the export.

    Args:
        argv: Arguments; by default the process's own.

    Returns:
        Exit code: 0 if OUT was written, 1 if not.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    fill_positional(parser, arguments, "adapter", "output_dir")
    _check_format(parser, arguments)
    try:
        {"lora": _export_lora, "hf": _export_model}[arguments.format](arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
