"""What a run prints, with `--dry_run` and at its end; and what it publishes."""

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from huggingface_hub import HfApi

from loramoe.analysis.report import FIGURES, PAGE, write_report
from loramoe.analysis.target import conclude
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.callbacks import log_figures
from loramoe.training.checkpoint import ADAPTER, PAGES
from loramoe.training.distributed import decide_on_rank_0
from loramoe.training.launch.memory import GIB, Engine, Parameters, Plan, memory_per_gpu
from loramoe.training.prepare import Prepared
from loramoe.utils import SaveError, as_usage_error, public_name

logger = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]

USE: Final = """
Load it in Python (from this folder, or after pip install):
  import loramoe
  from peft import PeftModel
  from transformers import AutoModelForCausalLM
  base = AutoModelForCausalLM.from_pretrained("{base_model}")
  model = PeftModel.from_pretrained(base, "{adapter}")

Generate:
  {python} -m loramoe.generate --adapter {adapter} --prompt "…"

Evaluate:
  {evaluate}
"""


def dry_run_summary(prepared: Prepared) -> str:
    """What a run would do: processes, batch, samples and tokens, and memory on each device."""
    model_args, data_args, args = prepared.arguments
    report, names, engine = prepared.splits.report, prepared.prompt_format.type_names, _engine(args)
    per_device, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    lines = {
        "base model": model_args.base_model,
        "processes": f"{args.world_size} ({engine}, {args.device.type})",
        "global batch": f"{per_device * accumulated * args.world_size} = {per_device} per device x {accumulated} "
        f"accumulated x {args.world_size} processes",
        "samples per type": ", ".join(
            f"{names.get(t, t)} (type {t}): {count:,}" for t, count in sorted(report.task_types.items())
        ),
        "tokens": f"{report.tokens:,}",
    }
    if prepared.model is not None:
        count = Parameters.of(prepared.model)
        saved = prepared.model_config.get_text_config().dtype if model_args.dtype == "auto" else model_args.dtype
        bits = 32 if model_args.load_in_kbits == 16 and "float32" in str(saved) else model_args.load_in_kbits
        sizes = (prepared.config.lora_nums, prepared.config.r, per_device, data_args.max_seq_length)
        plan = Plan(engine, args.world_size, *sizes, bits, bool(args.gradient_checkpointing))
        parts = memory_per_gpu(count, prepared.model_config, plan)
        named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        lines["parameters"] = f"{count.frozen:,} frozen, {count.trained:,} trained"
        lines["memory per device"] = f"{sum(parts.values()) / GIB:.1f} GiB by formula ({named})"
    return "\n".join(["", "Dry run: nothing was loaded or trained.", *(f"  {k:18} {v}" for k, v in lines.items())])


def _engine(args: TrainArguments) -> Engine:
    if args.fsdp or not args.deepspeed:
        return "fsdp2" if args.fsdp else "ddp"
    zero = args.hf_deepspeed_config.config.get("zero_optimization", {})
    offloads = zero.get("stage", 0) > 1 and any(str(name).startswith("offload") for name in zero)
    return cast("Engine", f"zero{zero.get('stage', 0) or 1}{'_offload' * offloads}")


def before_and_after(history: list[dict[str, Any]]) -> Metrics:
    """The first and the last value of each evaluation loss, perplexity and recall of a log."""
    found: Metrics = {"before": {}, "after": {}}
    for entry in history:
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name == "recall" or (name != key and re.search(r"(^|_)(loss|perplexity)(/|$)", name)):
                found["after"][name] = value
                if entry["step"] == 0:
                    found["before"].setdefault(name, value)
    return found


def table(metrics: Metrics) -> list[str]:
    """What was measured, a line each."""
    lines = []
    for name, value in metrics["after"].items():
        kind, slash, part = name.partition("/")  # loss/knowledge and held_out_loss are parts of the evaluation loss
        label = "evaluation loss" if kind == "loss" else kind.replace("_", " ")
        before = f"{metrics['before'][name]:.4g} before, " if name in metrics["before"] else ""
        lines.append(f"  {label}{f' ({part})' if slash else ''}: {before}{value:.4g} after")
    return lines


def report_experts(trainer: Any, prepared: Prepared, folder: Path) -> str:
    """Writes the report on the experts, sends its figures to the trackers, and returns what it concludes, if anything.

    A run whose report fails is finished all the same.
    """
    stats, config, names = trainer.eval_routing, prepared.config, prepared.prompt_format.type_names
    if stats is None:
        return ""
    model_args, data_args, args = prepared.arguments
    data = public_name(data_args.validation_file) if data_args.validation_file else "the validation samples"
    try:
        if args.experts_page:
            observed = {"adapter": ADAPTER, "base_model": public_name(model_args.base_model), "data": data}
            write_report(stats, config, names, folder, **observed)
            log_figures(trainer, [folder / name for name in FIGURES])
    except Exception as error:  # of a drawing library, too
        logger.warning("no report on the experts: %s: %s; loramoe report can write it.", type(error).__name__, error)
    return conclude(stats, config, names)


def final_summary(arguments: Arguments, metrics: Metrics, conclusion: str = "") -> str:
    """What a finished run has made and measured, and the commands that use it."""
    output_dir, base_model = Path(arguments.training.output_dir), arguments.model.base_model
    adapter, page = output_dir / ADAPTER, output_dir / PAGES / PAGE
    lines = ["", "Finished.", f"  adapter   {adapter}"]
    if page.is_file():
        lines.append(f"  report    {page}   which expert serves which task type")
    lines += table(metrics)
    if conclusion:
        lines.append(f"  experts   {conclusion}")
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python  # as the user would type it
    evaluate = f"{python} -m loramoe.evaluate --adapter {adapter} --file {arguments.data.recall_file}"
    if not arguments.data.recall_file:
        lm_eval = f"--model hf --model_args pretrained={base_model},peft={adapter} --tasks …"
        evaluate = f"PYTHONPATH=. {python} -m lm_eval {lm_eval}"
    return "\n".join([*lines, USE.format(base_model=base_model, adapter=adapter, python=python, evaluate=evaluate)])


def create_repository(args: TrainArguments) -> str | None:
    """Creates the repository of `--push_to_hub`, so that a wrong token or name is found early.

    The Trainer would push output_dir at each save, with the optimizer's state and paths of this machine.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    name, hub = args.hub_model_id or Path(args.output_dir).resolve().name, HfApi()

    def create() -> str:
        # What cannot reach the hub raises errors of requests, httpx or the hub's own, by version.
        with as_usage_error(Exception, about=f"push_to_hub: there can be no repository {name} on {hub.endpoint}:"):
            repository: str = hub.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
            if args.hub_revision:
                hub.create_branch(repository, branch=args.hub_revision, exist_ok=True)
            return repository

    return decide_on_rank_0(create)


def push(repository: str, folder: Path, revision: str | None) -> str:
    """Uploads an adapter's folder in one commit, and returns the commit's address."""
    upload = partial(HfApi().upload_folder, commit_message="Upload the trained adapter")
    try:
        commit = upload(repo_id=repository, folder_path=folder, revision=revision)
    except Exception as error:
        branch = f" --revision {revision}" if revision else ""
        raise SaveError(
            f"the adapter is whole in {folder}, but could not be pushed to {repository}: "
            f"{' '.join(str(error).split())}. To push it again: hf upload {repository} {folder}{branch}"
        ) from error
    return str(commit.commit_url)
