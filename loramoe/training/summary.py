"""What a run prints, with `--dry_run` and at its end; and what it publishes."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi

from loramoe.analysis.report import FIGURES, PAGE, write_report
from loramoe.analysis.target import conclude
from loramoe.training.arguments import Arguments, TrainArguments
from loramoe.training.callbacks import log_figures
from loramoe.training.checkpoint import ADAPTER, PAGES
from loramoe.training.distributed import decide_on_rank_0
from loramoe.training.launch.memory import GIB, Engine, Parameters, Plan, memory_per_gpu
from loramoe.training.prepare import Prepared
from loramoe.utils import SaveError, UsageError, as_usage_error, public_name

logger = logging.getLogger(__name__)

Metrics = dict[str, dict[str, float]]


def dry_run_summary(prepared: Prepared) -> str:
    """What a run would do: processes, batch, samples and tokens, and memory on each device."""
    model_args, _, args = prepared.arguments
    report, names = prepared.splits.report, prepared.type_names
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    types = ", ".join(f"{names.get(t, t)} (type {t}): {count:,}" for t, count in sorted(report.task_types.items()))
    lines = ["", "Dry run: nothing was loaded or trained.", f"  base model         {model_args.base_model}"]
    lines.append(f"  processes          {args.world_size} ({_engine(args)}, {args.device.type})")
    lines.append(
        f"  global batch       {batch} = {args.per_device_train_batch_size} per device x "
        f"{args.gradient_accumulation_steps} accumulated x {args.world_size} processes"
    )
    lines += [f"  samples per type   {types}", f"  tokens             {report.tokens:,}"]
    if prepared.model is not None:
        lines += _memory_lines(prepared)
    return "\n".join(lines)


def _memory_lines(prepared: Prepared) -> list[str]:
    model_args, data_args, args = prepared.arguments
    count = Parameters.of(prepared.model)
    saved = prepared.model_config.get_text_config().dtype if model_args.dtype == "auto" else model_args.dtype
    plan = Plan(
        engine=_engine(args),
        gpus=args.world_size,
        experts=prepared.config.lora_nums,
        rank=prepared.config.r,
        batch=args.per_device_train_batch_size,
        length=data_args.max_seq_length,
        bits=32 if model_args.load_in_kbits == 16 and "float32" in str(saved) else model_args.load_in_kbits,
        checkpointing=bool(args.gradient_checkpointing),
    )
    parts = memory_per_gpu(count, prepared.model_config, plan)
    named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    return [
        f"  parameters         {count.frozen:,} frozen, {count.trained:,} trained",
        f"  memory per device  {sum(parts.values()) / GIB:.1f} GiB by formula ({named})",
    ]


def _engine(args: TrainArguments) -> Engine:
    if args.fsdp:
        return "fsdp2"
    if not args.deepspeed:
        return "ddp"
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
    before = metrics["before"]
    return [
        f"{_label(name)}: {f'{before[name]:.4g} before, ' if name in before else ''}{value:.4g} after"
        for name, value in metrics["after"].items()
    ]


def _label(name: str) -> str:
    """`loss` is the evaluation loss; `loss/knowledge` and `held_out_loss` are parts of it."""
    kind, slash, part = name.partition("/")
    label = "evaluation loss" if kind == "loss" else kind.replace("_", " ")
    return f"{label} ({part})" if slash else label


def report_experts(trainer: Any, prepared: Prepared, folder: Path) -> str:
    """Writes the report on the experts, and sends its figures to the trackers; a run whose report fails is finished.

    Returns:
        What the report concludes; empty without an evaluation, or with a single expert.
    """
    stats, config, names = trainer.eval_routing, trainer.model.peft_config[ADAPTER], prepared.type_names
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
    model_args, data_args, args = arguments
    output_dir = Path(args.output_dir)
    adapter = output_dir / ADAPTER
    lines = ["", "Finished.", f"  adapter   {adapter}"]
    if (output_dir / PAGES / PAGE).is_file():
        lines.append(f"  report    {output_dir / PAGES / PAGE}   which expert serves which task type")
    lines += [f"  {line}" for line in table(metrics)]
    if conclusion:
        lines.append(f"  experts   {conclusion}")
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python  # as the user would type it
    lm_eval = f"--model hf --model_args pretrained={model_args.base_model},peft={adapter} --tasks …"
    measure = f"PYTHONPATH=. {python} -m lm_eval {lm_eval}"
    if data_args.recall_file:
        measure = f"{python} -m loramoe.evaluate --adapter {adapter} --file {data_args.recall_file}"
    return "\n".join(
        [
            *lines,
            "",
            "Load it in Python (from this folder, or after pip install):",
            "  import loramoe",
            "  from peft import PeftModel",
            "  from transformers import AutoModelForCausalLM",
            f'  base = AutoModelForCausalLM.from_pretrained("{model_args.base_model}")',
            f'  model = PeftModel.from_pretrained(base, "{adapter}")',
            "",
            f'Generate:\n  {python} -m loramoe.generate --adapter {adapter} --prompt "…"',
            "",
            f"Evaluate:\n  {measure}",
            "",
        ]
    )


def create_repository(args: TrainArguments) -> str | None:
    """Creates the repository of `--push_to_hub`, so that a wrong token or name is found early.

    The Trainer would push output_dir at each save, with the optimizer's state and paths of this machine.
    """
    if not args.push_to_hub:
        return None
    if not args.do_train:
        raise UsageError("push_to_hub pushes what a training has finished, and do_train is false. Leave it out.")
    args.push_to_hub = False
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    hub = HfApi()

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
    try:
        commit = HfApi().upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message="Upload the trained adapter"
        )
    except Exception as error:
        branch = f" --revision {revision}" if revision else ""
        raise SaveError(
            f"the run is finished, and its adapter whole in {folder}, but it could not be pushed to {repository}: "
            f"{' '.join(str(error).split())}. To push it again: hf upload {repository} {folder}{branch}"
        ) from error
    return str(commit.commit_url)
