"""`loramoe export`: an adapter folder to a plain LoRA, a merged model, a stand-alone model or the original format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from loramoe import loading
from loramoe.data import TEMPLATES, SftCollator, choose_prompt_format, evenly_spaced, tokenise_dataset
from loramoe.decoding import pad_id
from loramoe.export.original import convert
from loramoe.export.run import REPORT, export_lora
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
    loading.add_model_flags(parser)
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


def _batches(flags: argparse.Namespace, tokenizer: Any, path: str, most: int | None = None) -> DataLoader[Any]:
    """Samples as batches, without those that fill max_seq_length: their answers may be cut there."""
    samples, report = tokenise_dataset(path, tokenizer, template=flags.template, max_seq_length=flags.max_seq_length)
    whole = [index for index, length in enumerate(samples["length"]) if length < flags.max_seq_length]
    print(f"{path}: {report}; {len(whole)} shorter than max_seq_length={flags.max_seq_length} are used")
    samples = evenly_spaced(samples.select(whole, keep_in_memory=True), most)
    return DataLoader(samples, batch_size=flags.batch_size, collate_fn=SftCollator(pad_id(tokenizer)))


def _export_lora(flags: argparse.Namespace) -> None:
    """Everything that can fail for a wrong flag or file does so before the base model is loaded."""
    check_output_dir(Path(flags.output_dir), flags.overwrite, REPORT)
    adapter = loading.adapter_folder(flags.adapter)
    layout = choose_prompt_format(flags.template, [adapter])
    flags.template, flags.max_seq_length = layout.template, flags.max_seq_length or layout.max_seq_length
    name = loading.base_name(flags.base_model, [adapter])
    base = loading.BaseArguments(name, dtype=flags.dtype, load_in_kbits=flags.load_in_kbits)
    tokenizer = loading.load_tokenizer(name, [adapter])
    calibration = _batches(flags, tokenizer, flags.calibration, flags.calibration_rows)
    test = _batches(flags, tokenizer, flags.test) if flags.test else None
    options = {"tokenizer": tokenizer, "source": flags.adapter, "rank": flags.rank, "overwrite": flags.overwrite}
    model = loading.load_model(base, adapter, flags.device)
    report = export_lora(model, flags.output_dir, calibration, test, merge=flags.format == "merged", **options)
    for name in ("base", "adapter", "lora"):
        scores = report["groups"]["answers"][name].items()
        print(f"{name:8}", *(f"{measure}={value:.4g}" for measure, value in scores))
    print(f"an approximation: read {Path(flags.output_dir) / 'README.md'} before you use it")


def _export(flags: argparse.Namespace) -> None:
    if flags.format == "original":
        convert(Path(loading.adapter_folder(flags.adapter)), Path(flags.output_dir), True, flags.overwrite)
    elif flags.format == "hf":
        from loramoe.serving.export import export_model

        link, options = bool(flags.link_base), {"base_model": flags.base_model, "dtype": flags.dtype}
        export_model(flags.adapter, flags.output_dir, link_base=link, overwrite=flags.overwrite, **options)
    else:
        _export_lora(flags)


def main(argv: list[str] | None = None) -> int:
    """Runs `loramoe export`; the exit code is 1 if nothing was written."""
    parser = _parser()
    flags = parser.parse_args(argv)
    loading.fill_positional(parser, flags, "adapter", "output_dir")
    for flag, formats in OWN_FLAGS.items():
        if flags.format not in formats and getattr(flags, flag) != parser.get_default(flag):
            parser.error(f"--{flag} belongs to --format {' or '.join(formats)}. Leave it out")
    if flags.format in ("lora", "merged") and not flags.calibration:
        parser.error(f"--format {flags.format} needs --calibration")
    try:
        _export(flags)
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {flags.output_dir}: {FORMATS[flags.format]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
