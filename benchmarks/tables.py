"""Writes the results into docs/performance.md, between `<!-- benchmarks:NAME -->` and `<!-- /benchmarks:NAME -->`.

Ratios are taken within a round; a table shows their median.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from statistics import median
from typing import Any

from benchmarks.harness import ROOT, load

PAGE = ROOT / "docs/performance.md"
MARKED = re.compile(r"(<!-- benchmarks:(\w+) -->\n).*?(<!-- /benchmarks:\2 -->)", re.DOTALL)
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
NAMES = {
    "base": "frozen model",
    "lora": "PEFT LoRA, rank E·R",
    "naive": "naive loop",
    "eager": "ours, eager",
    "fused": "ours, fused (default)",
    "xlora": "PEFT X-LoRA",
}
OURS = "fused"
Result = dict[str, Any]
Seconds = dict[str, list[float]]


def ratio(seconds: Seconds, side: str, other: str) -> float:
    """Return the median over rounds of side / other."""
    return median(a / b for a, b in zip(seconds[side], seconds[other], strict=True))


def added(seconds: Seconds, side: str, other: str) -> float:
    """Return the time that a side adds to the frozen model, as a share of what another side adds.

    The medians are taken before the division: single differences are noisy and can be near zero.
    """
    mine, theirs = (
        median(a - b for a, b in zip(seconds[name], seconds["base"], strict=True)) for name in (side, other)
    )
    return mine / theirs if theirs > 0 else float("nan")


def spread(seconds: Seconds) -> float:
    """Return by which share the slowest side is slower than the fastest."""
    first = next(iter(seconds))
    relative = [ratio(seconds, side, first) for side in seconds]
    return max(relative) / min(relative) - 1


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table; floats get three digits."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    text = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in text)


def provenance(result: Result) -> str:
    """Return hardware, versions, date and commit in one line."""
    machine = result["hardware"]
    if result["device"] == "cuda":
        where = f"{machine['gpu']}, {machine['memory_GiB']} GiB, CUDA {machine['cuda']}"
    else:
        where = f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "loramoe")
    dirty = " with uncommitted changes" if result["dirty"] else ""
    return f"{where}; {versions}; {result['date']}, commit {result['commit'][:7]}{dirty}."


def targets() -> str:
    """Each target of the CPU, the worst measured cell, and how many cells reach it."""
    cells, steps, decodes, packings = (
        [(one, one["seconds"]) for one in (load(name, "cpu") or {}).get(part, [])]
        for name, part in (("layer", "cells"), ("step", "settings"), ("decode", "settings"), ("packing", "settings"))
    )
    peaks = [one["peak_bytes"][OURS] / one["peak_bytes"]["lora"] for one, _ in steps]
    measured: list[tuple[str, str, float, list[float]]] = [
        ("layer: added cost, ours / LoRA", "≤", 1.0, [added(taken, OURS, "lora") for _, taken in cells]),
        ("layer: added cost, ours / naive", "≤", 0.15, [added(t, OURS, "naive") for _, t in cells]),
        ("step: tokens/s, ours / LoRA", "≥", 1.0, _gains(steps, dropout=False, compiled=False)),
        ("step, dropout: tokens/s, ours / LoRA", "≥", 1.05, _gains(steps, dropout=True, compiled=False)),
        ("step, compiled: tokens/s, ours / LoRA", "≥", 1.0, _gains(steps, compiled=True)),
        ("step: peak memory, ours / LoRA", "≤", 1.01, peaks),
        ("generation: time, ours / frozen", "≤", 1.25, [ratio(t, OURS, "base") for _, t in decodes]),
        ("packing: tokens/s, packed / padded", "≥", 1.8, [ratio(t, "padded", "packed") for _, t in packings]),
    ]
    rows = []
    for what, sign, bound, values in measured:
        reached = sum(value <= bound if sign == "≤" else value >= bound for value in values)
        worst = (max if sign == "≤" else min)(values)
        rows.append([what, f"{sign} {bound}", worst, f"{reached} of {len(values)}"])
    return table(["figure, on the CPU", "target", "worst cell", "cells that reach it"], rows)


def _gains(steps: list[tuple[Result, Seconds]], **wanted: bool) -> list[float]:
    chosen = [seconds for one, seconds in steps if all(bool(one[name]) == value for name, value in wanted.items())]
    return [ratio(seconds, "lora", OURS) for seconds in chosen]


def layer(result: Result) -> str:
    """One linear layer: time relative to the frozen layer, added cost, saved bytes, and expert counts."""
    head = ["layer", "tokens", "dtype", "dropout", "LoRA / frozen", "ours / frozen"]
    head += ["added, ours / naive", "added, ours / LoRA", "saved, ours / LoRA"]
    rows = []
    for cell in result["cells"]:
        seconds, saved = cell["seconds"], cell["saved_bytes"]
        times = [ratio(seconds, side, "base") for side in ("lora", OURS)]
        costs = [added(seconds, OURS, "naive"), added(seconds, OURS, "lora"), saved[OURS] / saved["lora"]]
        rows.append([*_size(cell), *times, *costs])
    counts = [
        f"{cell['dtype']}: the slowest of E = {', '.join(cell['seconds'])} takes {spread(cell['seconds']):.1%} longer "
        f"than the fastest, at E·R = {cell['total_rank']}."
        for cell in result["counts"]
    ]
    return "\n\n".join([table(head, rows), *counts])


def _size(cell: dict[str, Any]) -> list[object]:
    return ["→".join(map(str, cell["features"])), cell["tokens"], cell["dtype"], f"{cell['dropout']:g}"]


def step(result: Result) -> str:
    """A training step: tokens per second and peak memory of every side."""
    rows = []
    for setting in result["settings"]:
        how = [f"{_shape(setting)}{', compiled' * setting['compiled']}", f"{setting['dropout']:g}"]
        for side, taken in setting["seconds"].items():
            speed = f"{setting['rows'] * setting['length'] / median(taken):,.0f}"
            peak, of_lora = setting["peak_bytes"][side], setting["peak_bytes"]["lora"]
            ratios = [ratio(setting["seconds"], "lora", side), f"{peak / 2**20:,.0f}", peak / of_lora]
            rows.append([*how, NAMES[side], speed, *ratios])
        rows += [[*how, NAMES[side], "out of memory", *["–"] * 3] for side in setting["out_of_memory"]]
    head = ["setting", "dropout", "side", "tokens/s", "/ LoRA", "peak memory, MiB", "/ LoRA"]
    return f"{table(head, rows)}\n\nSetting: layers × hidden size, rows × tokens, dtype."


def _shape(setting: dict[str, Any]) -> str:
    shape = setting["shape"]
    return f"{shape['layers']}×{shape['hidden']}, {setting['rows']}×{setting['length']}, {setting['dtype']}"


def decode(result: Result) -> str:
    """Generation: milliseconds per token of every side."""
    rows = []
    for setting in result["settings"]:
        shape = f"{setting['shape']['layers']} × {setting['shape']['hidden']}, {setting['dtype']}"
        shape += ", compiled" * setting["compiled"]
        for side, taken in setting["seconds"].items():
            milliseconds = f"{1e3 * median(taken) / setting['tokens']:.2f}"
            rows.append([shape, NAMES[side], milliseconds, ratio(setting["seconds"], side, "base")])
    return table(["layers × hidden size", "side", "ms per token", "/ frozen"], rows)


def packing(result: Result) -> str:
    """Packed rows and padded rows: real tokens per second, and the share of padding."""
    rows = []
    for setting in result["settings"]:
        for side, taken in setting["seconds"].items():
            speed = f"{setting['tokens'] / median(taken):,.0f}"
            over_padded = ratio(setting["seconds"], "padded", side)
            rows.append([setting["lengths"], side, f"{setting['padding'][side]:.0%}", speed, over_padded])
    return table(["lengths", "side", "padding", "real tokens/s", "/ padded"], rows)


BENCHMARKS = {"layer": layer, "step": step, "decode": decode, "packing": packing}


def block(name: str) -> str:
    """Return the text of a marked block.

    Raises:
        ValueError: If no table has this name.
    """
    if name == "targets":
        return targets()
    if name not in BENCHMARKS:
        raise ValueError(f"benchmarks:{name} names no table; expected targets, {', '.join(BENCHMARKS)}.")
    results = [load(name, device) for device in DEVICES]
    texts = [f"{BENCHMARKS[name](one)}\n\n{DEVICES[one['device']]}: {provenance(one)}" for one in results if one]
    return "\n\n".join(texts)


def fill(page: str) -> str:
    """Return a page with each marked block written anew."""
    return MARKED.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", page)


def update(check: bool) -> bool:
    """Write the page, or only compare it; return whether it was out of date."""
    before = PAGE.read_text(encoding="utf-8")
    after = fill(before)
    if after != before:
        print(f"{'out of date' if check else 'written'}: {PAGE.relative_to(ROOT)}")
        if not check:
            PAGE.write_text(after, encoding="utf-8")
    return after != before
