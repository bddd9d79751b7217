"""What it costs to see the experts while they train: everything that is logged of them, as a share of a training step.

The work is timed by itself in the same rounds as the step, because it is too little to be seen in the difference of two
steps (which stands beside it, `with_over_without`). It has two halves:

- `gather`, for every forward: the figures of the constraint's hook by task type, and adding them up in the meter;
- `log`, for every log: bringing the sums to the CPU and from the processes, deriving all figures, and writing them into
  TensorBoard's file.

So two shares of a step are told: with a log at every step, and at every tenth, as the launcher has it.

Both models are small and their rows short, so that a step is over soon and the share is large.

    python -m benchmarks.live [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM

from benchmarks.harness import ROOT, paired, quantiles, ratios, run_alone, start, write_result
from benchmarks.sides import MLP, Mixture, trained
from loramoe import last_balance
from loramoe.report import ShareMeter
from loramoe.report.live import live_figures

EVERY = 10  # the launcher's logging_steps


@dataclass(frozen=True)
class Setting:
    """What is trained, on what.

    Attributes:
        model: Folder of the base model.
        rows: Rows of a batch.
        length: Tokens of a row.
    """

    model: str
    rows: int
    length: int


SETTINGS = (Setting("data/tiny_llama", 16, 32), Setting("models/smollm2-135m", 2, 32))


class Live:
    """What is done for the log, by itself.

    Args:
        model: An adapted model in training.
        batch: What a step calls it with.
        folder: Where TensorBoard's file goes.
    """

    def __init__(self, model: nn.Module, batch: dict[str, Tensor], folder: str) -> None:
        with torch.no_grad():
            model(**batch)
        self.model = model
        self.meter = ShareMeter()
        self.writer = SummaryWriter(folder)
        self.logs = 0

    def gather(self) -> None:
        """The work of one forward."""
        balance = last_balance(self.model)
        assert balance is not None
        self.meter.add(balance)

    def log(self) -> dict[str, float]:
        """The work of one log."""
        meter, self.meter = self.meter.on_cpu(), ShareMeter()
        figures = live_figures(ShareMeter.sum(gather_object([meter])).result())
        for name, value in figures.items():
            self.writer.add_scalar(f"train/{name}", value, self.logs)
        self.logs += 1
        return figures

    def gather_and_log(self) -> None:
        """The work of a step that is logged."""
        self.gather()
        self.log()


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One step without what is logged, ready to be repeated."""
    optimiser = torch.optim.AdamW(trained(model), lr=1e-4)

    def run() -> None:
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def measure(setting: Setting, device: torch.device, pairs: int) -> dict[str, Any]:
    """Time a step without what is logged, the step with all of it, and that work alone.

    Args:
        setting: What is trained.
        device: Where.
        pairs: Rounds.

    Returns:
        The setting, its size, the number of figures, seconds of every round, and what `compare` makes of them.
    """
    base = AutoModelForCausalLM.from_pretrained(ROOT / setting.model).to(device)
    model = get_peft_model(base, Mixture(dropout=0.05).config(MLP)).train()
    ids = torch.randint(base.config.vocab_size, (setting.rows, setting.length), device=device)
    types = torch.arange(setting.rows, device=device) % 2
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "task_types": types}
    step = training_step(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        live = Live(model, batch, folder)

        def with_all() -> None:
            step()
            live.gather_and_log()

        sides = {"without": step, "with": with_all, "gather": live.gather, "gather_and_log": live.gather_and_log}
        seconds = paired(sides, pairs, name=setting.model)
        live.gather()
        figures = len(live.log())
        live.writer.close()
    size = {"layers": base.config.num_hidden_layers, "hidden": base.config.hidden_size, "figures": figures}
    return {**asdict(setting), **size, "seconds": seconds, **compare(seconds)}


def compare(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What is logged as a share of a step, from the seconds of all sides.

    Args:
        seconds: Seconds of `without`, `with`, `gather` and `gather_and_log` in the same rounds.

    Returns:
        Quantiles over the rounds of the share with a log at every step and at every tenth, and of the whole step with
        all of it over the step without; the step's milliseconds.
    """
    seldom = [g + (both - g) / EVERY for g, both in zip(seconds["gather"], seconds["gather_and_log"], strict=True)]
    return {
        "step_ms": 1e3 * median(seconds["without"]),
        "share_every_step": quantiles(ratios(seconds["gather_and_log"], seconds["without"])),
        f"share_every_{EVERY}": quantiles(ratios(seldom, seconds["without"])),
        "with_over_without": quantiles(ratios(seconds["with"], seconds["without"])),
    }


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each model, and write `results/live.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: The embedded model alone, in two rounds, to see that the code runs.
    """
    where = start(device)
    pairs = 2 if quick else 15
    there = [setting for setting in SETTINGS[: 1 if quick else None] if (ROOT / setting.model).is_dir()]
    for setting in SETTINGS:
        if setting not in there and not quick:
            print(f"{setting.model} is not there: not measured. bash scripts/get_smollm2.sh makes it.")
    measured = [measure(setting, where, pairs) for setting in there]
    for one in measured:
        every, seldom = one["share_every_step"]["p50"], one[f"share_every_{EVERY}"]["p50"]
        print(
            f"{one['model']}, {one['rows']} rows of {one['length']} tokens, a step of {one['step_ms']:.0f} ms: "
            f"{one['figures']} figures cost {every:.2%} logged at every step, {seldom:.2%} at every {EVERY}th"
        )
    body = {"quick": quick, "pairs": pairs, "mixture": asdict(Mixture(dropout=0.05)), "settings": measured}
    print(write_result("live", where.type, body))


if __name__ == "__main__":
    run_alone(main)
