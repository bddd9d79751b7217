"""A server answers OpenAI's client as `model.generate` answers with the adapter.

The server is vLLM where that is installed, else `transformers serve`. scripts/ecosystem/vllm.sh and serving.sh make the
environments and the adapter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from scripts.ecosystem.serving import BASE, QUESTIONS, ROOT, VLLM, start_server

openai = pytest.importorskip("openai", reason="not installed here: scripts/ecosystem/serving.sh")
pytest.importorskip("uvicorn", reason="transformers[serving] is not installed here: scripts/ecosystem/serving.sh")

HAS_VLLM = importlib.util.find_spec("vllm") is not None
ADAPTER = ROOT / "output" / "tiny_llama" / "sft_lora_model"
COUNT = 12
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ADAPTER.is_dir(), reason="no trained adapter: bash run_loramoe.sh"),
]


def text_of(choice: Any) -> str:
    """The text without the space before its first word, which vLLM keeps and a decoder of the answer alone drops."""
    return str(choice.text if hasattr(choice, "text") else choice.message.content).removeprefix(" ")


class Answer(NamedTuple):
    text: str
    log_probabilities: list[float]


@pytest.fixture(scope="module")
def model() -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ADAPTER)


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, ids: list[int]) -> Answer:
    """The greedy continuation, without a server."""
    tokens = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False)
    new, log_probabilities = tokens[0, len(ids) :], model(tokens).logits.log_softmax(-1)[0, len(ids) - 1 : -1]
    chosen = log_probabilities.gather(-1, new[:, None]).flatten()
    return Answer(tokenizer.decode(new, skip_special_tokens=True), chosen.tolist())


@pytest.fixture(scope="module")
def answers(model: Any, tokenizer: Any) -> dict[str, Answer]:
    """Prompts without a template, 40 of them."""
    prompts = [probe["prompt"] for probe in json.loads((QUESTIONS.parent / "recall.json").read_text())[:40]]
    return {prompt: generate(model, tokenizer, tokenizer(prompt).input_ids) for prompt in prompts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For vLLM the stand-alone model, for `transformers serve` base model and adapter in one folder."""
    from loramoe.serving.export import export_model

    out = tmp_path_factory.mktemp("served") / "model"
    if HAS_VLLM:
        export_model(str(ADAPTER), out, base_model=str(BASE))
    else:
        shutil.copytree(BASE, out)
        shutil.copytree(ADAPTER, out, dirs_exist_ok=True)
    return out


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Any]:
    if HAS_VLLM:
        server = start_server("vllm", "serve", str(folder), "--model-impl", "transformers", *VLLM)
    else:
        server = start_server("transformers", "serve", str(folder), "--device", "cpu", PYTHONPATH=str(ROOT))
    with server as address:
        yield connect(address)


def connect(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key="none", timeout=300, max_retries=0)


@pytest.fixture(scope="module")
def complete(client: Any, folder: Path) -> Any:
    def ask(prompt: str, client: Any = client, **options: Any) -> Any:
        return client.completions.create(model=str(folder), prompt=prompt, max_tokens=COUNT, temperature=0, **options)

    return ask


@pytest.fixture(scope="module")
def chat(client: Any, folder: Path) -> Any:
    def ask(question: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": question}]
        return client.chat.completions.create(
            model=str(folder), messages=messages, max_tokens=COUNT, temperature=0, **options
        )

    return ask


def test_the_adapter_changes_answers(model, tokenizer, answers):
    with model.disable_adapter():
        base = {prompt: generate(model, tokenizer, tokenizer(prompt).input_ids) for prompt in list(answers)[:10]}
    assert all(answers[prompt].log_probabilities != answer.log_probabilities for prompt, answer in base.items())


def test_completions_are_those_of_generate(complete, answers):
    for prompt, answer in answers.items():
        choice = complete(prompt, **({"logprobs": 1} if HAS_VLLM else {})).choices[0]
        assert text_of(choice) == answer.text
        if HAS_VLLM:
            assert choice.logprobs.token_logprobs == pytest.approx(answer.log_probabilities, abs=1e-4)


@pytest.mark.skipif(not HAS_VLLM or len(os.sched_getaffinity(0)) < 2, reason="needs vLLM and two cores")
def test_tensor_parallelism_of_vllm(complete, folder, answers):
    command = ("vllm", "serve", str(folder), "--model-impl", "transformers", "--tensor-parallel-size", "2", *VLLM)
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with start_server(*command, **cores) as address:
        for prompt, answer in answers.items():
            choice = complete(prompt, connect(address), logprobs=1).choices[0]
            assert text_of(choice) == answer.text
            assert choice.logprobs.token_logprobs == pytest.approx(answer.log_probabilities, abs=1e-4)


def test_sixteen_at_once_are_answered_as_one_by_one(complete, answers):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda prompt: text_of(complete(prompt).choices[0]), answers))
    assert found == [answer.text for answer in answers.values()]


def test_a_stream_adds_up_to_the_answer(complete, answers):
    for prompt, answer in list(answers.items())[:3]:
        pieces = [chunk.choices[0].text for chunk in complete(prompt, stream=True)]
        assert "".join(pieces).removeprefix(" ") == answer.text
        assert len(list(filter(None, pieces))) > 1


def test_a_prompt_of_several_blocks(complete, model, tokenizer, answers):
    prompt = ". ".join(answers)[:600]
    ids = tokenizer(prompt).input_ids
    assert len(ids) > 3 * 32  # --block-size
    assert text_of(complete(prompt).choices[0]) == generate(model, tokenizer, ids).text


def test_chat_uses_the_template_of_the_training(chat, model, tokenizer):
    from loramoe.data import conversation, get_template

    for row in json.loads(QUESTIONS.read_text())[:5]:
        ids = get_template("release", tokenizer).chat_ids(conversation(row["instruction"], "", "")[:1])
        expected = generate(model, tokenizer, ids).text
        assert text_of(chat(row["instruction"]).choices[0]) == expected
        stream = chat(row["instruction"], stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces).removeprefix(" ") == expected


def test_without_the_plug_in_the_server_does_not_start(folder):
    if HAS_VLLM:
        command, off = ("vllm", "serve", str(folder), "--model-impl", "transformers"), {"VLLM_PLUGINS": ""}
    else:
        command, off = ("transformers", "serve", str(folder), "--device", "cpu"), {"PYTHONPATH": ""}
    with pytest.raises(RuntimeError, match=r"loramoe_llama|LORAMOE"), start_server(*command, **off):
        pass
