"""A whole training step of a Llama: forward, constraint, backward, AdamW on the adapter. Tokens per second and memory.

Ours trains with the balancing constraint on; the naive loop and X-LoRA without. No side keeps keys and values. Beside
each side's tokens per second stands what share of the machine's matrix rate it reaches: the arithmetic that the frozen
model needs anyway, divided by the side's time and by the rate of a large square product, timed in the same run.

    python -m benchmarks.step [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import paired, quantiles, ratios, run_alone, start, write_result
from benchmarks.memory import peak_bytes
from benchmarks.sides import MODEL_SIDES, OURS, LlamaShape, Mixture, model_side, trained

WITHOUT_LOOPS = ("base", "lora", *OURS)
LLAMA_2_7B = LlamaShape(layers=32, hidden=4096, intermediate=11008, heads=32, vocabulary=32000, positions=4096)
LAYERS_TRIED = (32, 24, 16, 12, 8, 4, 2)


@dataclass(frozen=True)
class Setting:
    """What is trained, on what, and who takes part.

    Attributes:
        shape: Size of the model; on a GPU as many of its layers as fit.
        rows: Rows of a batch.
        length: Tokens of a row.
        dtype: Of everything.
        dropout: Dropout probability on the experts' input.
        sides: Names of the sides.
    """

    shape: LlamaShape
    rows: int
    length: int
    dtype: str
    dropout: float
    sides: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.length


def settings(device: str, quick: bool) -> list[Setting]:
    """What to measure: the library's default dropout with all sides, and no dropout without those that take long.

    Args:
        device: "cpu", or "cuda" for the shape of Llama-2-7B.
        quick: Tiny sizes instead.

    Returns:
        The settings.
    """
    if quick:
        shape, rows, length, dtype = LlamaShape(2, 32, 48, 2, 64, 32), 2, 8, "float32"
    elif device == "cuda":
        shape, rows, length, dtype = LLAMA_2_7B, 4, 4096, "bfloat16"
    else:
        shape, rows, length, dtype = LlamaShape(8, 512, 1376, 8, 4096, 256), 4, 256, "float32"
    return [
        Setting(shape, rows, length, dtype, dropout=0.05, sides=MODEL_SIDES),
        Setting(shape, rows, length, dtype, dropout=0.0, sides=WITHOUT_LOOPS),
    ]


def training_step(side: str, model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """One step of one side, ready to be repeated.

    Args:
        side: Its name: ours is given task types, the frozen base has no optimiser.
        model: The adapted model.
        ids: Token ids [rows, length], which are the labels too.

    Returns:
        A function that does it once.
    """
    weights = trained(model)
    optimiser = torch.optim.AdamW(weights, lr=1e-4) if weights else None
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    if side in OURS:
        batch["task_types"] = torch.arange(len(ids), device=ids.device) % 2

    def run() -> None:
        model(**batch).loss.backward()
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()

    return run


def layers_that_fit(base: nn.Module, setting: Setting, ids: Tensor) -> int:
    """Cut a model down until a step of plain LoRA fits into the GPU's memory; on the CPU nothing is cut.

    Args:
        base: The frozen model, which loses its upper layers.
        setting: What is measured.
        ids: Token ids [rows, length].

    Returns:
        Number of layers left.
    """
    if ids.device.type != "cuda":
        return setting.shape.layers
    for layers in LAYERS_TRIED:
        base.model.layers = base.model.layers[:layers]
        base.config.num_hidden_layers = layers
        if fits(training_step("lora", model_side("lora", base, Mixture(dropout=setting.dropout)), ids)):
            return layers
    raise RuntimeError(f"not even {LAYERS_TRIED[-1]} layers of {setting.shape} fit into the GPU's memory.")


def fits(step: Callable[[], None]) -> bool:
    """Whether a step runs without running out of the GPU's memory.

    Args:
        step: Runs it once.

    Returns:
        False if it ran out; what it held is free again.
    """
    with suppress(torch.OutOfMemoryError):
        step()
        return True
    gc.collect()  # after the exception is gone, which held the step's tensors
    torch.cuda.empty_cache()
    return False


def flops(shape: LlamaShape, rows: int, length: int) -> float:
    """Floating-point operations that a step of the frozen model needs, its adapters apart.

    A product counts twice its weights for each token forward, and as much again for the gradient of its input; weights
    are frozen, and the first layer needs none below its MLP's down_proj. Attention is causal: half of length², two
    products forward and four backward.

    Args:
        shape: Size of the model.
        rows: Rows of a batch.
        length: Tokens of a row.

    Returns:
        The operations.
    """
    h, i, layers = shape.hidden, shape.intermediate, shape.layers
    per_layer, head = 4 * h * h + 3 * h * i, h * shape.vocabulary
    forward = layers * per_layer + head
    backward = forward - 4 * h * h - 2 * h * i
    attention = 2 * h * (length / 2) * (2 * layers + 4 * (layers - 1))
    return rows * length * (2 * (forward + backward) + attention)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Floating-point operations per second of a large square product.

    Args:
        device: Where.
        dtype: Of the matrices.
        side: Rows and columns of each.

    Returns:
        The rate at the median of the rounds.
    """
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = paired({"product": lambda: torch.mm(a, b)}, pairs=15, warmup=3, name="matrix rate")
    return 2 * side**3 / median(seconds["product"])


def measure(setting: Setting, device: torch.device, pairs: int) -> dict[str, Any]:
    """Compare the sides of one setting.

    Args:
        setting: What is measured.
        device: Where.
        pairs: Rounds.

    Returns:
        The setting with seconds of every round, tokens per second, ratios to plain LoRA, peak memory, matrix rate and
        the sides that did not fit into memory.
    """
    dtype = getattr(torch, setting.dtype)
    base = setting.shape.build(device, dtype)
    ids = torch.randint(setting.shape.vocabulary, (setting.rows, setting.length), device=device)
    shape = replace(setting.shape, layers=layers_that_fit(base, setting, ids))
    steps = {}
    for name in setting.sides:
        steps[name] = training_step(name, model_side(name, base, Mixture(dropout=setting.dropout)), ids)
        if not fits(steps[name]):  # which is the first round of its warm-up too
            del steps[name]
    seconds = paired(steps, pairs, warmup=1, name=f"training step, dropout {setting.dropout}")
    rate = matrix_rate(device, dtype, side=8192 if device.type == "cuda" else min(2048, 8 * shape.hidden))
    return {
        **asdict(replace(setting, shape=shape)),
        "out_of_memory": [name for name in setting.sides if name not in steps],
        "peak_bytes": {name: peak_bytes(step, device) for name, step in steps.items()},
        "matrix_flops_per_second": rate,
        "seconds": seconds,
        **compare(seconds, setting.tokens, flops(shape, setting.rows, setting.length) / rate),
    }


def compare(seconds: dict[str, list[float]], tokens: int, ideal: float) -> dict[str, Any]:
    """What the bars are about, from the seconds of all sides.

    Args:
        seconds: Seconds of each side, `lora` among them, in the same rounds.
        tokens: Tokens of a step.
        ideal: Seconds that the frozen model's arithmetic would take at the measured matrix rate.

    Returns:
        For each side its tokens per second, these over plain LoRA's (quantiles over rounds), and its share of the rate.
    """
    middle = {name: median(taken) for name, taken in seconds.items()}
    return {
        "tokens_per_second": {name: tokens / taken for name, taken in middle.items()},
        "speed_over_lora": {name: quantiles(ratios(seconds["lora"], taken)) for name, taken in seconds.items()},
        "share_of_matrix_rate": {name: ideal / taken for name, taken in middle.items()},
    }


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each side, and write `results/step.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: Tiny sizes, to see that the code runs.
    """
    where = start(device)
    pairs = 2 if quick else 9
    measured = [measure(setting, where, pairs) for setting in settings(where.type, quick)]
    for one in measured:
        for name, speed in one["tokens_per_second"].items():
            memory = one["peak_bytes"][name] / one["peak_bytes"]["lora"]
            print(
                f"dropout {one['dropout']}, {name}: {speed:,.0f} tokens/s, "
                f"{one['speed_over_lora'][name]['p50']:.2f} of LoRA's with {memory:.2f} of its memory, "
                f"{one['share_of_matrix_rate'][name]:.0%} of the matrix rate"
            )
    body = {"quick": quick, "pairs": pairs, "mixture": asdict(Mixture()), "settings": measured}
    print(write_result("step", where.type, body))


if __name__ == "__main__":
    run_alone(main)
