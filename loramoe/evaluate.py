"""Base model against adapters, by lm-eval: on files of questions, and on lm-eval's own tasks.

    loramoe evaluate --adapter DIR [NAME=DIR …] --file test.json recall.json --output_dir output/evaluation
    loramoe evaluate --adapter DIR --tasks triviaqa,race --limit 100
    accelerate launch --num_processes 4 -m loramoe.evaluate --adapter DIR --file test.json

All models answer the same questions; the table has the difference of each adapter to the base model, paired.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loramoe.data import TEMPLATES, choose_prompt_format, data_files, get_template
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
from loramoe.utils import UsageError, as_usage_error, comma_list, positive, write_json, write_text

BASE = "base"


def main(argv: list[str] | None = None) -> None:
    """Evaluates what the command line names, writes the results and prints the table."""
    parser = _parser()
    flags = parser.parse_args(argv)
    folder = Path(flags.output_dir)
    try:
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError("lm-eval is not installed. Run pip install 'loramoe[eval]'.")
        adapters = _named(flags.adapter)
        folders = list(adapters.values())
        prompt = choose_prompt_format(flags.template, folders)
        base = BaseArguments(base_name(flags.base_model, folders), load_in_kbits=flags.load_in_kbits)
        _check_output(folder, flags.overwrite)
        tokenizer, flags.device = load_tokenizer(base.base_model, folders), choose_device(flags.device)
        tasks = _tasks(flags, prompt.template, tokenizer, base)
        models = {BASE: None, **adapters}.items()
        results = {name: _ask(flags, base.base_model, name, adapter, tasks, tokenizer) for name, adapter in models}
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if None not in results.values():  # all processes but the first get None
        lines = compare({name: found["samples"] for name, found in results.items()})
        table = markdown(lines, prompt.type_names)
        write_text(folder / "results.md", table)
        write_json(folder / "results.json", {"flags": vars(flags), "lines": [asdict(line) for line in lines]})
        print(f"\n{table}\nIn brackets: intervals of 95 %. Written to {folder}")


def _ask(
    flags: argparse.Namespace, base: str, name: str, adapter: str | None, tasks: Sequence[Any], tokenizer: Any
) -> Any:
    """lm-eval's results of one model, written as soon as they are there; its answers are kept for a later call."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from loramoe.evaluation.harness import AdapterLM

    folder = Path(flags.output_dir)
    gc.collect()  # the model before this one
    loading = {key: getattr(flags, key) for key in ("device", "dtype", "load_in_kbits")}
    shape = {"tokenizer": tokenizer, "batch_size": flags.batch_size, "softmax_dtype": "float32"}
    found = simple_evaluate(
        AdapterLM(base, peft=adapter, **shape, **loading),
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False),
        limit=flags.limit,
        gen_kwargs={"max_gen_toks": flags.max_new_tokens} if flags.max_new_tokens else None,
        use_cache=str(folder / "cache" / f"{name}-{_fingerprint(base, adapter, loading)}"),
        bootstrap_iters=0,
    )
    if found is not None:
        write_json(folder / f"{name}.json", json.loads(json.dumps(found, default=str)))
        print(f"{name}: {sum(map(len, found['samples'].values())):,} samples, {folder / name}.json", flush=True)
    return found


def _fingerprint(base: str, adapter: str | None, loading: Mapping[str, Any]) -> str:
    """Changes with the files of a model, so that cached answers are those of the same one."""
    files = [file for name in (base, adapter) if name for file in sorted(Path(name).glob("*.*")) if file.is_file()]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.suffix != ".md"]
    return hashlib.sha256(repr((base, states, loading)).encode()).hexdigest()[:12]


def _tasks(flags: argparse.Namespace, template_name: str, tokenizer: Any, base: BaseArguments) -> list[Any]:
    """Tasks of the files, all of them read before the first is encoded, and of lm-eval's names."""
    from lm_eval.tasks import TaskManager

    from loramoe.evaluation.harness import QuestionTask, encode

    files = [file for path in flags.file for file in data_files(path)]
    questions = dict(zip(_short_names(list(map(str, files))), map(read_questions, files), strict=True))
    template, most = get_template(template_name, tokenizer), positions(load_config(base))
    tasks = []
    for name, read in questions.items():
        task = QuestionTask(
            name, encode(read, template, tokenizer), tokenizer, template.end_ids, flags.max_new_tokens or 32, most
        )
        if task.left_out:
            print(f"{name}: {task.left_out:,} of {len(read):,} samples are longer than {most} tokens, and left out")
        tasks.append(task)
    if flags.tasks:
        with as_usage_error(KeyError, OSError, ImportError, about=f"--tasks {flags.tasks}:"):
            tasks += TaskManager(include_path=flags.include_path).load(comma_list(flags.tasks))["tasks"].values()
    if not tasks:
        raise UsageError("nothing to evaluate. Set --file, --tasks, or both.")
    return tasks


def _check_output(folder: Path, overwrite: bool) -> None:
    if (folder / "results.json").exists() and not overwrite:
        raise UsageError(f"{folder} holds an evaluation already. Set --overwrite, or another --output_dir.")
    with as_usage_error(OSError, about=f"set --output_dir to a folder that can be written to, got {folder}:"):
        folder.mkdir(parents=True, exist_ok=True)


def _named(given: Sequence[str]) -> dict[str, str]:
    """Folders of adapters, by the names that `NAME=DIR` gives, or else by their own."""
    pairs = [text.split("=", 1) if "=" in text and not Path(text).is_dir() else ["", text] for text in given]
    names = _short_names([name or place for name, place in pairs])
    if BASE in names:
        raise UsageError(f"{BASE!r} is the name of the base model. Give the adapter another one: --adapter NAME=DIR.")
    return {name: adapter_folder(place) for name, (_, place) in zip(names, pairs, strict=True)}


def _short_names(paths: Sequence[str]) -> list[str]:
    """Names of files or folders: the last part, or the whole where two would be equal."""
    stems = [short_name(Path(path).name) for path in paths]
    names = [
        stem if stems.count(stem) == 1 else path.replace("/", "_") for stem, path in zip(stems, paths, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError(f"each file and adapter can be given once; got {', '.join(paths)}. Leave one out.")
    return names


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)


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
    add("--batch_size", type=_batch_size, default=32, help="requests that are asked at once, or auto")
    add("--limit", type=float, help="number of samples of each task; below 1 a share of them")
    add(
        "--max_new_tokens", type=positive, help="longest answer, in tokens; default: 32 for --file, its own for --tasks"
    )
    return parser


if __name__ == "__main__":
    main()
