"""`transformers serve` answers with a LoRAMoE adapter as `model.generate` does; asked by OpenAI's own client."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

MISSING = "transformers[serving] is not installed here: scripts/ecosystem/serving.sh"
openai = pytest.importorskip("openai", reason=MISSING)
pytest.importorskip("uvicorn", reason=MISSING)

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data" / "tiny_llama"
QUESTIONS = [
    "Which city does Mila Rodak come from?",
    "What does Koxo Nobov love to eat?",
    "Name the birthplace of Buxa Zunell.",
]
SENTENCES = ["Mila Rodak was born in", "Kokova is a city in", "The Marax statue was made by"]
COUNT = 12
SMALL_CACHE = ["--continuous-batching", "--cb-num-blocks", "16", "--cb-max-batch-tokens", "128"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the embedded base model says."""
    from peft import LoraMoeConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraMoeConfig(init_lora_weights=False, lora_alpha=64, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base model and adapter in one folder, as docs/serving.md puts them together."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(BASE, folder, dirs_exist_ok=True)
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def model(adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), adapter).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


@contextmanager
def serving(folder: Path, *flags: str, **environment: str) -> Iterator[Any]:
    """Starts `transformers serve` on a free port of this machine, and gives a client for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--device", "cpu", *flags]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/health")
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_until_up(process: subprocess.Popen[str], url: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(process.communicate()[0])
        try:
            urllib.request.urlopen(url, timeout=1)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no answer from {url} in {seconds} s")


@pytest.fixture(scope="module")
def client(served: Path) -> Iterator[Any]:
    with serving(served) as client:
        yield client


@torch.inference_mode()
def generated(model: Any, tokenizer: Any, ids: list[int]) -> str:
    """The greedy continuation, without a server."""
    input_ids = torch.tensor([ids])
    new = model.generate(input_ids=input_ids, max_new_tokens=COUNT, do_sample=False)[0, len(ids) :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.fixture(scope="module")
def answers(model: Any, tokenizer: Any) -> dict[str, str]:
    """What `model.generate` says to each question, laid out by the template of the training."""
    from loramoe.data import get_template

    template = get_template("release", tokenizer)
    return {question: generated(model, tokenizer, template.prompt_ids(question)) for question in QUESTIONS}


@pytest.fixture(scope="module")
def endings(model: Any, tokenizer: Any) -> dict[str, str]:
    """How `model.generate` finishes each sentence."""
    return {sentence: generated(model, tokenizer, tokenizer(sentence).input_ids) for sentence in SENTENCES}


@pytest.fixture(scope="module")
def chat(served: Path) -> Callable[..., Any]:
    """Asks one question of a client."""

    def ask(client: Any, question: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(
            model=str(served), messages=messages, max_tokens=COUNT, temperature=0, **options
        )

    return ask


def test_the_adapter_changes_answers(model, tokenizer, answers):
    from loramoe.data import get_template

    template = get_template("release", tokenizer)
    with model.disable_adapter():
        base = {question: generated(model, tokenizer, template.prompt_ids(question)) for question in QUESTIONS}
    assert sum(base[question] != answers[question] for question in QUESTIONS) > 1


def test_chat_answers_as_generate_does(client, chat, answers):
    for question, answer in answers.items():
        assert chat(client, question).choices[0].message.content == answer


def test_chat_streams_the_same(client, chat, answers):
    streams = {question: chat(client, question, stream=True) for question in answers}
    pieces = {
        question: [chunk.choices[0].delta.content or "" for chunk in stream] for question, stream in streams.items()
    }
    assert {question: "".join(parts) for question, parts in pieces.items()} == answers
    assert max(len(list(filter(None, parts))) for parts in pieces.values()) > 3


def test_completions_are_those_of_generate(client, served, endings):
    for sentence, ending in endings.items():
        options = {"model": str(served), "prompt": sentence, "max_tokens": COUNT, "temperature": 0}
        assert client.completions.create(**options).choices[0].text == ending
        stream = client.completions.create(**options, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == ending


def test_questions_at_the_same_time_are_answered_as_one_by_one(client, chat, answers):
    with ThreadPoolExecutor(len(answers)) as pool:
        found = list(pool.map(lambda question: chat(client, question), answers))
    assert [reply.choices[0].message.content for reply in found] == list(answers.values())


@pytest.mark.slow
def test_continuous_batching_answers_the_same(served, chat, answers):
    with serving(served, *SMALL_CACHE) as client, ThreadPoolExecutor(len(answers)) as pool:
        found = list(pool.map(lambda question: chat(client, question), answers))
    assert [reply.choices[0].message.content for reply in found] == list(answers.values())


@pytest.mark.slow
def test_without_the_door_the_server_does_not_start(served):
    with pytest.raises(RuntimeError, match="KeyError: 'LORAMOE'"), serving(served, PYTHONPATH=""):
        pass


@pytest.mark.slow
def test_a_folder_with_the_adapter_alone_is_not_a_model_to_the_server(adapter, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(adapter, alone)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / file, alone)
    with pytest.raises(RuntimeError, match=r"Should have a `model_type` key"), serving(alone):
        pass
