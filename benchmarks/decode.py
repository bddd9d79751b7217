"""Greedy generation with a key-value cache, batch 1: milliseconds per token of the adapted model and of its base.

One token at a time, a linear reads all of its weights for one row of input: the arithmetic of an adapter is nothing,
and what counts is how many calls it makes. On a GPU a static cache is measured too, with which transformers compiles
the model and replays it as a CUDA graph. Plain LoRA is not merged here; merged, it is its base.

    python -m benchmarks.decode [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import paired, quantiles, ratios, run_alone, start, write_result
from benchmarks.sides import OURS, LlamaShape, Mixture, model_side

SIDES = ("base", "lora", *OURS)


@dataclass(frozen=True)
class Setting:
    """What generates, and how much.

    Attributes:
        shape: Size of the model.
        dtype: Of everything.
        prompt: Tokens of the prompt.
        tokens: Tokens to generate after it.
        compiled: Whether a static cache has transformers compile the model; else it runs eagerly.
    """

    shape: LlamaShape
    dtype: str
    prompt: int
    tokens: int
    compiled: bool


def settings(device: str, quick: bool) -> list[Setting]:
    """What to measure.

    Args:
        device: "cpu", or "cuda" for 8 layers of Llama-2-7B's shape (all its layers are alike), eager and compiled.
        quick: Tiny sizes instead.

    Returns:
        The settings.
    """
    if quick:
        return [Setting(LlamaShape(2, 32, 48, 2, 64, 32), "float32", prompt=4, tokens=4, compiled=False)]
    if device == "cuda":
        shape = LlamaShape(8, 4096, 11008, 32, 32000, 4096)
        return [Setting(shape, "bfloat16", prompt=32, tokens=64, compiled=compiled) for compiled in (False, True)]
    shapes = (LlamaShape(8, 512, 1376, 8, 4096, 256), LlamaShape(2, 2048, 5504, 16, 4096, 256))
    return [Setting(shape, "float32", prompt=32, tokens=24, compiled=False) for shape in shapes]


def generation(model: nn.Module, ids: Tensor, setting: Setting) -> Callable[[], Tensor]:
    """Greedy generation of one side, ready to be repeated.

    Args:
        model: The model.
        ids: Token ids of the prompt, [1, prompt].
        setting: What is measured.

    Returns:
        A function that does it once, and returns [1, prompt + tokens].
    """
    static = {"cache_implementation": "static"} if setting.compiled else {}
    options = {"max_new_tokens": setting.tokens, "do_sample": False, "use_cache": True, **static}
    mask = torch.ones_like(ids)
    return lambda: model.generate(input_ids=ids, attention_mask=mask, **options)


@torch.no_grad()
def check(sides: dict[str, nn.Module], ids: Tensor) -> None:
    """Hold the sides to each other before any is timed, by the logits of the prompt.

    With equal weights our two implementations must agree; with B at zero every side must be its base, exactly.

    Args:
        sides: The models by name; weights of ours are made equal, all others are left as they are.
        ids: Token ids of the prompt, [1, prompt].

    Raises:
        AssertionError: If a side is wrong.
    """
    eager, fused = (sides[name] for name in OURS)
    fused.load_state_dict(eager.state_dict())
    logits = eager(input_ids=ids).logits
    tolerance = 1e-4 if logits.dtype == torch.float32 else 3e-2
    if not (fused(input_ids=ids).logits - logits).norm() <= tolerance * logits.norm():
        raise AssertionError("eager and fused disagree: not timed.")
    truth = sides["base"](input_ids=ids).logits
    for name in ("lora", *OURS):
        if not torch.equal(_logits_of_zero_experts(sides[name], ids), truth):
            raise AssertionError(f"{name} with a zero B is not its base: not timed.")


def _logits_of_zero_experts(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of the prompt while every B is zero."""
    Bs = [parameter for name, parameter in model.named_parameters() if "lora_B" in name or name.endswith(".B")]
    kept = [B.clone() for B in Bs]
    for B in Bs:
        B.zero_()
    logits = model(input_ids=ids).logits
    for B, values in zip(Bs, kept, strict=True):
        B.copy_(values)
    return logits


def measure(setting: Setting, device: torch.device, pairs: int) -> dict[str, Any]:
    """Compare the sides of one setting.

    Args:
        setting: What is measured.
        device: Where.
        pairs: Rounds.

    Returns:
        The setting with seconds of every round, milliseconds per token (the prompt's share in them), and the time over
        the base's (quantiles over rounds).
    """
    base = setting.shape.build(device, getattr(torch, setting.dtype))
    base.generation_config.eos_token_id = None  # it ends when it has its tokens
    base.generation_config.pad_token_id = 0
    ids = torch.randint(setting.shape.vocabulary, (1, setting.prompt), device=device)
    sides = {name: model_side(name, base, Mixture()).eval() for name in SIDES}
    check(sides, ids)
    runs = {name: generation(model, ids, setting) for name, model in sides.items()}
    warmup = 3 if setting.compiled else 1  # to compile, then to record the CUDA graph
    seconds = paired(runs, pairs, warmup, name=f"generation, hidden size {setting.shape.hidden}")
    return {
        **asdict(setting),
        "seconds": seconds,
        "ms_per_token": {name: 1e3 * median(taken) / setting.tokens for name, taken in seconds.items()},
        "time_over_base": {name: quantiles(ratios(taken, seconds["base"])) for name, taken in seconds.items()},
    }


def main(device: str | None = None, quick: bool = False) -> None:
    """Measure, print a line for each side, and write `results/decode.<device>.json`.

    Args:
        device: "cpu" or "cuda"; None takes what is there.
        quick: Tiny sizes, to see that the code runs.
    """
    where = start(device)
    pairs = 2 if quick else 9
    measured = [measure(setting, where, pairs) for setting in settings(where.type, quick)]
    for one in measured:
        for name, taken in one["ms_per_token"].items():
            how = "compiled" if one["compiled"] else "eager"
            over_base = one["time_over_base"][name]["p50"]
            print(f"hidden {one['shape']['hidden']}, {how}, {name}: {taken:.2f} ms/token, {over_base:.2f} of base")
    body = {"quick": quick, "pairs": pairs, "mixture": asdict(Mixture()), "settings": measured}
    print(write_result("decode", where.type, body))


if __name__ == "__main__":
    run_alone(main)
