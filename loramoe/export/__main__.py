"""`loramoe export`: an adapter folder to a plain LoRA, a merged model, a stand-alone model or the original format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from loramoe.data import TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.export.original import convert
from loramoe.export.run import REPORT, export_lora
from loramoe.loading import (
    BaseArguments,
    adapter_folder,
    add_model_flags,
    base_name,
    fill_positional,
    load_model,
    load_tokenizer,
)
from loramoe.utils import check_output_dir, positive

FORMATS = {
    "lora": "a plain LoRA, which approximates the adapter",
    "merged": "that LoRA merged into the base model, as for llama.cpp",
    "hf": "the adapter itself with its base model, as one Hugging Face folder",
    "original": "the adapter in the format of the original code",
}
# Flags of some formats only.
OWN_FLAGS: dict[str, tuple[str, ...]] = {"link_base": ("hf",), "load_in_kbits": ("lora",)}
OWN_FLAGS |= dict.fromkeys(("calibration", "test", "max_seq_length", "template", "rank", "device"), ("lora", "merged"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loramoe export", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="ADAPTER OUT", help="older form of --adapter and --output_dir")
    add_model_flags(parser)
    parser.add_argument("--output_dir", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result in --output_dir")
    formats = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, default="lora", help=formats)
    parser.add_argument("--rank", type=positive, help="rank of the LoRA; default: lora_nums times lora_rank")
    parser.add_argument("--calibration", help="file, folder or hub name of samples to average the gates over")
    parser.add_argument("--test", help="held-out samples to measure on; default: the calibration samples")
    parser.add_argument("--calibration_rows", type=positive, default=1000, help="most samples, evenly spaced")
    parser.add_argument("--batch_size", type=positive, default=8)
    parser.add_argument("--max_seq_length", type=int, help="most tokens of a sample; default: as in training")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="prompt template; default: as in training")
    parser.add_argument("--link_base", action="store_true", default=None, help="hf: link the base model's files")
    return parser


def _batches(arguments: argparse.Namespace, tokenizer: Any, path: str, most: int | None = None) -> DataLoader[Any]:
    """Samples as batches, without those that fill max_seq_length: their answers may be cut there."""
    settings = {"template": arguments.template, "max_seq_length": arguments.max_seq_length}
    samples, report = tokenise_dataset(path, tokenizer, **settings)
    whole = [index for index, length in enumerate(samples["length"]) if length < arguments.max_seq_length]
    print(f"{path}: {report}; {len(whole)} shorter than max_seq_length={arguments.max_seq_length} are used")
    samples = evenly_spaced(samples.select(whole, keep_in_memory=True), most)
    return DataLoader(samples, batch_size=arguments.batch_size, collate_fn=SftCollator(pad_id(tokenizer)))


def _export_lora(arguments: argparse.Namespace) -> None:
    """Everything that can fail for a wrong flag or file does so before the base model is loaded."""
    check_output_dir(Path(arguments.output_dir), arguments.overwrite, REPORT)
    adapter = adapter_folder(arguments.adapter)
    layout = choose_prompt_format(arguments.template, [adapter])
    arguments.template = layout.template
    arguments.max_seq_length = arguments.max_seq_length or layout.max_seq_length
    name = base_name(arguments.base_model, [adapter])
    base = BaseArguments(name, dtype=arguments.dtype, load_in_kbits=arguments.load_in_kbits)
    tokenizer = load_tokenizer(name, [adapter])
    calibration = _batches(arguments, tokenizer, arguments.calibration, arguments.calibration_rows)
    test = _batches(arguments, tokenizer, arguments.test) if arguments.test else None
    options = {"tokenizer": tokenizer, "source": arguments.adapter, "overwrite": arguments.overwrite}
    options |= {"rank": arguments.rank, "merge": arguments.format == "merged"}
    model = load_model(base, adapter, arguments.device)
    report = export_lora(model, arguments.output_dir, calibration, test, **options)
    for name in ("base", "adapter", "lora"):
        score = report["groups"]["answers"][name]
        print(f"{name:8}", *(f"{measure}={value:.4g}" for measure, value in score.items()))
    print(f"an approximation: read {Path(arguments.output_dir) / 'README.md'} before you use it")


def _export_model(arguments: argparse.Namespace) -> None:
    from loramoe.serving.export import export_model

    options = {"base_model": arguments.base_model, "dtype": arguments.dtype, "overwrite": arguments.overwrite}
    export_model(arguments.adapter, arguments.output_dir, link_base=bool(arguments.link_base), **options)


def _export_original(arguments: argparse.Namespace) -> None:
    convert(Path(arguments.adapter), Path(arguments.output_dir), to_original=True, overwrite=arguments.overwrite)


def main(argv: list[str] | None = None) -> int:
    """Runs `loramoe export`; the exit code is 1 if nothing was written."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    fill_positional(parser, arguments, "adapter", "output_dir")
    for flag, formats in OWN_FLAGS.items():
        if arguments.format not in formats and getattr(arguments, flag) != parser.get_default(flag):
            parser.error(f"--{flag} belongs to --format {' or '.join(formats)}. Leave it out")
    if arguments.format in ("lora", "merged") and not arguments.calibration:
        parser.error(f"--format {arguments.format} needs --calibration")
    export = {"hf": _export_model, "original": _export_original}.get(arguments.format, _export_lora)
    try:
        export(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output_dir}: {FORMATS[arguments.format]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
