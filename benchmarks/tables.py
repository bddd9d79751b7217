"""Results as Markdown: one function for each table that a page may hold, by the name of its marker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.bars import BARS, OURS, Bar, Result, load

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
COMMANDS = {"cpu": "python -m benchmarks cpu", "cuda": "python -m benchmarks gpu"}
NAMES = {
    "base": "frozen base",
    "lora": "PEFT LoRA, rank E·R",
    "naive": "naive loop",
    "eager": "ours, eager",
    "stacked": "ours, stacked",  # the name of eager in results up to 2026-11
    "fused": "ours, fused (default)",
    "xlora": "PEFT X-LoRA",
    "moe-peft": "moe-peft",
}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table.

    Args:
        head: Its columns.
        rows: Its cells.

    Returns:
        The lines.
    """
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def provenance(result: Result) -> str:
    """What one must know to believe a result, in one line.

    Args:
        result: What `write_result` wrote.

    Returns:
        Hardware, versions, date and commit.
    """
    machine = result["hardware"]
    if result["device"] == "cuda":
        where = f"{machine['gpu']}, {machine['memory_GiB']} GiB, CUDA {machine['cuda']}"
    else:
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    dirty = " with uncommitted changes" if result["dirty"] else ""
    return f"{where}; {versions}; {result['date']}, commit {result['commit'][:7]}{dirty}."


def not_measured(name: str, device: str) -> str:
    """What stands where a result is missing.

    Args:
        name: Name of the benchmark.
        device: "cpu" or "cuda".

    Returns:
        A line with the command that measures it.
    """
    if name == "data":
        return "not measured yet: `python -m benchmarks data`"
    command = "bash benchmarks/moe_peft.sh" if name == "moe_peft" else f"python -m benchmarks.{name}"
    return f"{DEVICES[device]}: not measured yet: `{command} --device {device}`"


# --- the bars ---------------------------------------------------------------------------------------------------------


def bars() -> str:
    """Every figure with its bar, the worst that was measured, and whether that reaches it, for both devices."""
    columns = [f"{DEVICES[device]}: {title}" for device in DEVICES for title in ("bar", "measured", "reached")]
    rows = [[bar.figure, *(cell for device in DEVICES for cell in _bar_cells(bar, device))] for bar in BARS]
    note = "Where a figure was measured in several cells, the worst of them stands here, and how many reach the bar."
    return "\n\n".join([table(["figure", *columns], rows), note, *map(_origin, DEVICES)])


def _origin(device: str) -> str:
    """Where a device's column comes from, and the command that measures what is missing in it."""
    results = {bar.benchmark: load(bar.benchmark, device) for bar in BARS}
    lines = sorted({f"{DEVICES[device]}: {provenance(result)}" for result in results.values() if result is not None})
    if None in results.values():
        lines.append(f"{DEVICES[device]}: `{COMMANDS[device]}` measures what is not measured yet.")
    return "\n\n".join(lines)


def _bar_cells(bar: Bar, device: str) -> list[str]:
    if device not in bar.bars:
        return ["–", "–", "–"]
    values = bar.measured(device)
    if values is None:
        return [bar.bar(device), "not measured yet", "–"]
    reaching = sum(bar.reached(value, device) for value in values)
    verdict = "yes" if reaching == len(values) else "no" if reaching == 0 else f"{reaching} of {len(values)}"
    return [bar.bar(device), bar.text(values[0]), verdict]


# --- one benchmark ----------------------------------------------------------------------------------------------------


def layer() -> str:
    """One linear: time over the base's, added cost and saved bytes, cell by cell; then the row of expert counts."""
    return _of_devices("layer", _layer)


def _layer(result: Result) -> str:
    ratios = ["LoRA / base", "naive / base", f"{_plain(result['cells'][0])} / base", "**ours / base**"]
    shares = ["added, ours / naive", "added, ours / LoRA", "saved, ours / LoRA"]
    cells = table([*_CELL, *ratios, *shares], [[*_cell(cell), *_comparison(cell)] for cell in result["cells"]])
    fewest, *more = result["counts"][0]["over_fewest"]
    head = [*_CELL, *(f"E = {count} / E = {fewest}" for count in more), "spread"]
    rows = [
        [*_cell(one), *map(_figure, list(one["over_fewest"].values())[1:]), f"{one['spread']:.1%}"]
        for one in result["counts"]
    ]
    return cells + "\n\n" + table(head, rows)


def _comparison(cell: dict[str, Any]) -> list[str]:
    over_base = [cell["time_over_base"][side]["p50"] for side in ("lora", "naive", _plain(cell), OURS)]
    saved = cell["saved_bytes"][OURS] / cell["saved_bytes"]["lora"]
    return [
        _figure(value) for value in (*over_base, cell["added_over_naive"][OURS], cell["added_over_lora"][OURS], saved)
    ]


def _plain(cell: dict[str, Any]) -> str:
    """The name of our implementation in plain PyTorch when a cell was measured."""
    return "eager" if "eager" in cell["time_over_base"] else "stacked"


_CELL = ("linear", "tokens", "dtype", "dropout")


def _cell(cell: dict[str, Any]) -> list[str]:
    return ["→".join(map(str, cell["features"])), str(cell["tokens"]), cell["dtype"], f"{cell['dropout']:g}"]


def step() -> str:
    """A whole training step: tokens per second, peak memory and share of the matrix rate of every side."""
    return _of_devices("step", _step)


def _step(result: Result) -> str:
    head = ["side", "dropout", "tokens/s", "/ LoRA", "peak memory, MiB", "/ LoRA", "of the matrix rate"]
    rows = []
    for setting in result["settings"]:
        measured = [(side, _step_cells(setting, side)) for side in setting["tokens_per_second"]]
        measured += [(side, ["out of memory", *["–"] * 4]) for side in setting["out_of_memory"]]
        rows += [[NAMES[side], f"{setting['dropout']:g}", *cells] for side, cells in measured]
    return _shape_of_step(result["settings"][0]) + "\n\n" + table(head, rows)


def _step_cells(setting: dict[str, Any], side: str) -> list[str]:
    peak, of_lora = setting["peak_bytes"][side], setting["peak_bytes"]["lora"]
    return [
        f"{setting['tokens_per_second'][side]:,.0f}",
        _figure(setting["speed_over_lora"][side]["p50"]),
        f"{peak / 2**20:,.0f}",
        _figure(peak / of_lora),
        f"{setting['share_of_matrix_rate'][side]:.0%}",
    ]


def summary() -> str:
    """The step with dropout, for the READMEs: every side beside plain LoRA, on every device that was measured."""
    results = {DEVICES[device]: result for device in DEVICES if (result := load("step", device)) is not None}
    if not results:
        return not_measured("step", "cpu")
    settings = {name: max(result["settings"], key=lambda one: one["dropout"]) for name, result in results.items()}
    sides = [side for side in NAMES if any(side in one["tokens_per_second"] for one in settings.values())]
    rows = [[NAMES[side], *(cell for one in settings.values() for cell in _beside_lora(one, side))] for side in sides]
    head = [f"{name}: {title}" for name in settings for title in ("tokens/s / LoRA", "peak memory / LoRA")]
    shapes = [f"{name}: {_shape_of_step(settings[name])} {provenance(results[name])}" for name in settings]
    return "\n\n".join([table(["", *head], rows), *shapes])


def _beside_lora(setting: dict[str, Any], side: str) -> list[str]:
    if side not in setting["tokens_per_second"]:
        return ["–", "–"]
    return [
        _figure(setting["speed_over_lora"][side]["p50"]),
        _figure(setting["peak_bytes"][side] / setting["peak_bytes"]["lora"]),
    ]


def _shape_of_step(setting: dict[str, Any]) -> str:
    shape, batch = setting["shape"], f"{setting['rows']}×{setting['length']} tokens"
    return f"{shape['layers']} layers, hidden size {shape['hidden']}, {batch}, {setting['dtype']}."


def decode() -> str:
    """Generation: milliseconds per token of every side, and its time over the base's."""
    return _of_devices("decode", _decode)


def _decode(result: Result) -> str:
    rows = []
    for setting in result["settings"]:
        shape = f"{setting['shape']['layers']} × {setting['shape']['hidden']}, {setting['dtype']}"
        how = "compiled" if setting["compiled"] else "eager"
        for side, taken in setting["ms_per_token"].items():
            rows.append([shape, how, NAMES[side], f"{taken:.2f}", _figure(setting["time_over_base"][side]["p50"])])
    return table(["layers × hidden size", "run", "side", "ms per token", "/ base"], rows)


def packing() -> str:
    """Packed rows beside padded ones: real tokens per second, and what share of a batch is padding."""
    return _of_devices("packing", _packing)


def _packing(result: Result) -> str:
    rows = []
    for setting in result["settings"]:
        for side, speed in setting["tokens_per_second"].items():
            over_padded = setting["speed_over_padded"][side]["p50"]
            numbers = [f"{setting['padding'][side]:.0%}", f"{speed:,.0f}", _figure(over_padded)]
            rows.append([setting["lengths"], setting["attention"][side], side, *numbers])
    return table(["lengths", "attention", "side", "padding", "real tokens/s", "/ padded"], rows)


def live() -> str:
    """What is logged of the experts, as a share of a training step: timed by itself, and as a difference of steps."""
    return _of_devices("live", _live)


def _live(result: Result) -> str:
    head = ["model", "layers", "rows × tokens", "step, ms", "figures", "at every 10th step", "at every step"]
    head.append("whole step, with / without")
    rows = []
    for setting in result["settings"]:
        shares = (setting[f"share_every_{often}"] for often in ("10", "step"))
        spans = [f"{one['p50']:.2%} ({one['p20']:.2%}–{one['p80']:.2%})" for one in shares]
        whole = setting["with_over_without"]
        spans.append(f"{whole['p50']:.2f} ({whole['p20']:.2f}–{whole['p80']:.2f})")
        size = [setting["layers"], f"{setting['rows']} × {setting['length']}", f"{setting['step_ms']:.0f}"]
        rows.append([setting["model"], *size, setting["figures"], *spans])
    return table(head, rows)


def moe_peft() -> str:
    """One linear: the package moe-peft beside the sides of `layer`, in the environment that it needs."""
    return _of_devices("moe_peft", _moe_peft)


def _moe_peft(result: Result) -> str:
    sides = ("lora", "naive", "moe-peft", OURS)
    rows = []
    for cell in result["cells"]:
        over_base = [cell["time_over_base"][side]["p50"] for side in sides]
        saved = [cell["saved_bytes"][side] / 2**20 for side in sides]
        rows.append([*_cell(cell), *map(_figure, over_base), *(f"{one:.1f}" for one in saved)])
    times, bytes_saved = (f"{NAMES[side]} / base" for side in sides), (f"{NAMES[side]}, saved MiB" for side in sides)
    return f"{result['package']}.\n\n" + table([*_CELL, *times, *bytes_saved], rows)


def data() -> str:
    """Reading, checking and tokenising many rows: rows per second, and memory, which must not grow with them."""
    result = load("data", "cpu")
    if result is None:
        return not_measured("data", "cpu")
    head = ["rows", "file, MB", "what", "rows/s", "memory before, MiB", "at the peak, MiB", "of it anonymous, MiB"]
    rows = []
    for cell in sorted(result["cells"], key=lambda cell: (cell["job"], cell["format"], cell["rows"])):
        what = {"tokenise": "tokenised", "stream": "checked for streaming"}[cell["job"]]
        memory = cell["before_MiB"]["resident"], cell["peak_MiB"]["resident"], cell["peak_MiB"]["anonymous"]
        size = f"{cell['file_bytes'] / 1e6:,.0f} ({cell['format']})"
        speed = f"{cell['rows'] / cell['seconds']:,.0f}"
        rows.append([f"{cell['rows']:,}", size, what, speed, *(f"{one:,.0f}" for one in memory)])
    return provenance(result) + "\n\n" + table(head, rows)


def _of_devices(name: str, draw: Callable[[Result], str]) -> str:
    """A benchmark's table on every device, each with its provenance, or with the command that is still to be run."""
    parts = []
    for device, title in DEVICES.items():
        result = load(name, device)
        parts += [not_measured(name, device)] if result is None else [f"{title}: {provenance(result)}", draw(result)]
    return "\n\n".join(parts)


def _figure(value: float) -> str:
    return f"{value:.3g}"


TABLES: dict[str, Callable[[], str]] = {
    "bars": bars,
    "summary": summary,
    "layer": layer,
    "step": step,
    "decode": decode,
    "packing": packing,
    "live": live,
    "moe_peft": moe_peft,
    "data": data,
}
