"""Base model against adapters, by lm-eval: on files of questions, and on lm-eval's own tasks.

    loramoe evaluate --adapter DIR [NAME=DIR …] --file test.json recall.json --output_dir output/evaluation
    loramoe evaluate --adapter DIR --tasks triviaqa,race --limit 100
    accelerate launch --num_processes 4 -m loramoe.evaluate --adapter DIR --file test.json

All models answer the same questions; the table has the difference of each adapter to the base model, paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loramoe.data import TEMPLATES, PromptTemplate, choose_prompt_format, data_files, get_template
from loramoe.data.sources import short_name
from loramoe.evaluation.questions import read_questions
from loramoe.evaluation.statistics import compare, markdown
from loramoe.loading import (
    BaseArguments,
    adapter_folder,
    add_model_flags,
    base_name,
    choose_device,
    load_config,
    load_tokenizer,
    positions,
)
from loramoe.utils import UsageError, as_usage_error, comma_list, positive, require, write_json, write_text

BASE = "base"


def main(argv: list[str] | None = None) -> None:
    """Evaluates what the command line names, writes the results and prints the table."""
    parser = _parser()
    flags = parser.parse_args(argv)
    try:
        _evaluate(flags)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def _evaluate(flags: argparse.Namespace) -> None:
    require("lm_eval", "loramoe evaluate", "'loramoe[eval]'")
    from loramoe.evaluation.harness import run_model

    named = _by_name(flags.adapter)
    if BASE in named:
        raise UsageError(f"{BASE!r} is the name of the base model. Give the adapter another one: --adapter NAME=DIR.")
    adapters = {name: adapter_folder(path) for name, path in named.items()}
    folders, folder = list(adapters.values()), Path(flags.output_dir)
    layout, base = choose_prompt_format(flags.template, folders), base_name(flags.base_model, folders)
    if (folder / "results.json").exists() and not flags.overwrite:
        raise UsageError(f"{folder} holds an evaluation already. Set --overwrite, or another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, flags.device = load_tokenizer(base, folders), choose_device(flags.device)
    most = positions(load_config(BaseArguments(base, load_in_kbits=flags.load_in_kbits)))
    tasks = _tasks(flags, get_template(layout.template, tokenizer), most)
    models = {BASE: None, **adapters}.items()
    logged = {name: run_model(flags, base, name, adapter, tasks, tokenizer) for name, adapter in models}
    if None not in logged.values():  # only the first of several processes gets them
        lines = compare(logged)
        table = markdown(lines, layout.type_names)
        write_text(folder / "results.md", table)
        write_json(folder / "results.json", {"flags": vars(flags), "lines": lines})
        print(f"\n{table}\nIn brackets: intervals of 95 %. Written to {folder}")


def _tasks(flags: argparse.Namespace, template: PromptTemplate, most: int | None) -> list[Any]:
    """Tasks of the files, all of them read before the first is encoded, and of lm-eval's names."""
    from lm_eval.tasks import TaskManager

    from loramoe.evaluation.harness import QuestionTask

    files, tasks = _by_name([str(file) for path in flags.file for file in data_files(path)]), []
    for name, questions in {name: read_questions(file) for name, file in files.items()}.items():
        tasks.append(QuestionTask(name, questions, template, flags.max_new_tokens or 32, most))
        if left_out := tasks[-1].left_out:
            print(f"{name}: {left_out:,} of {len(questions):,} samples are longer than {most} tokens, and left out")
    if flags.tasks:
        with as_usage_error(KeyError, OSError, ImportError, about=f"--tasks {flags.tasks}:"):
            tasks += TaskManager(include_path=flags.include_path).load(comma_list(flags.tasks))["tasks"].values()
    if not tasks:
        raise UsageError("nothing to evaluate. Set --file, --tasks, or both.")
    return tasks


def _by_name(paths: Sequence[str]) -> dict[str, str]:
    """Paths by the names that NAME=PATH gives them, or by their last part, or by the whole where two would be equal."""
    pairs = [
        path.split("=", 1) if "=" in path and not Path(path).exists() else [short_name(Path(path).name), path]
        for path in paths
    ]
    names = [name for name, _ in pairs]
    named = {name if names.count(name) == 1 else path.replace("/", "_"): path for name, path in pairs}
    if len(named) < len(paths):
        raise UsageError(f"each file and adapter can be given once; got {', '.join(paths)}. Leave one out.")
    return named


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loramoe evaluate", description="Base model against adapters, by lm-eval.")
    add = parser.add_argument
    add_model_flags(parser, adapter=False)
    add("--adapter", nargs="+", default=[], help="adapters: folders or hub names, each may be NAME=DIR; default: none")
    add("--file", nargs="+", default=[], help="files of questions, or folders of such; each file is a task")
    add("--tasks", help="tasks of lm-eval, separated by commas")
    add("--include_path", help="folder of further tasks of lm-eval")
    add("--output_dir", default="output/evaluation", help="folder of the results")
    add("--overwrite", action="store_true", help="replace the results in output_dir")
    add("--template", "--prompt_template", choices=TEMPLATES, help="prompt layout; default: that of the training")
    add("--batch_size", type=lambda text: text if text == "auto" else positive(text), default=32, help="or auto")
    add("--limit", type=float, help="number of samples of each task; below 1 a share of them")
    add("--max_new_tokens", type=positive, help="longest answer; default: 32 for --file, its own for --tasks")
    return parser


if __name__ == "__main__":
    main()
