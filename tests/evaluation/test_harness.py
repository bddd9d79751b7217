"""lm-eval asks with the tokens of the training, and finds what transformers and peft find without it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from loramoe.data import DatasetError, conversation, get_template
from loramoe.evaluation.questions import check_question
from loramoe.evaluation.recall import prompt_ids, read_probes, recall
from loramoe.generate import answer
from loramoe.loading import load

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'loramoe[eval]'")

from loramoe.evaluation.harness import AdapterLM, QuestionTask, Tokens, encode  # noqa: E402

SAMPLE = {"instruction": "w1 w2", "input": "w3", "output": "w4", "task_type": 0}
CHOICE = {**SAMPLE, "choices": ["w3 w4 w5", "w4", "w2"]}
CLOZE = {"prompt": "w1 w2 w3", "answer": "w4 w5"}
CHAT = "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}END {% endif %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_task: Any) -> Any:
    """The tokenizer of the tiny model."""
    return AutoTokenizer.from_pretrained(tiny_task.base)


@pytest.fixture
def ask(tiny_task: Any, tokenizer: Any) -> Callable[..., Any]:
    """Asks the tiny model, `ask(values, adapter=…)`, and gives the samples that lm-eval logs."""
    from lm_eval.evaluator import evaluate

    def samples(values: list[dict[str, Any]], adapter: str | None = None, template: str = "release") -> Any:
        read = [{**check_question(value), "where": f"row {n}"} for n, value in enumerate(values)]
        task = QuestionTask("rows", read, get_template(template, tokenizer), 5, 64)
        common = {"device": "cpu", "dtype": "float32", "load_in_kbits": 16, "batch_size": 4, "tokenizer": tokenizer}
        model = AdapterLM(str(tiny_task.base), peft=adapter, **common)
        return evaluate(model, {"tasks": {"rows": task}}, bootstrap_iters=0)["samples"]["rows"]

    return samples


@torch.no_grad()
def likelihood(model: Any, prompt: list[int], target: list[int]) -> float:
    logits_SV = model(torch.tensor([prompt + target]), use_cache=False).logits[0].double()
    chosen = F.log_softmax(logits_SV, dim=-1)[range(len(prompt) - 1, len(prompt) + len(target) - 1), target]
    return float(chosen.sum())


def test_ids_survive_what_lm_eval_does_with_texts() -> None:
    tokens = pickle.loads(pickle.dumps(Tokens("w1", [5])))
    assert (tokens, tokens.ids, json.dumps(tokens)) == ("w1", [5], '"w1"')


def test_figures_are_those_of_the_model_alone(ask: Any, saved_on_tiny_task: str) -> None:
    values = [{**SAMPLE, "instruction": " ".join(["w1"] * n)} for n in range(1, 6)] + [CHOICE, CLOZE]
    model, tokenizer = load(None, saved_on_tiny_task)
    layout = get_template("release", tokenizer)
    for found, value in zip(ask(values, saved_on_tiny_task), values, strict=True):
        if "prompt" in value:
            prompt, target = prompt_ids(tokenizer, value["prompt"]), tokenizer.convert_tokens_to_ids(["w4", "w5"])
        else:
            encoded = layout.encode([conversation(value["instruction"], value["input"], value["output"])])[0]
            prompt, target = encoded.prompt, encoded.target
            turns = conversation(value["instruction"], value["input"], "")[:1]
            assert found["filtered_resps"][-1].strip() == answer(model, tokenizer, layout, turns, 5)
        assert found["perplexity"][0] == pytest.approx(likelihood(model, prompt, target), rel=1e-5)
        assert found["perplexity"][1] == len(target)


def test_the_likeliest_choice_is_chosen_also_by_its_length(ask: Any, tiny_task: Any, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base).eval()
    layout = get_template("release", tokenizer)
    pairs = [layout.encode([conversation("w1 w2", "w3", text)])[0] for text in CHOICE["choices"]]
    sums = [likelihood(model, pair.prompt, pair.target) for pair in pairs]
    by_length = [one / len(text) for one, text in zip(sums, CHOICE["choices"], strict=True)]
    assert sums.index(max(sums)) != by_length.index(max(by_length))  # or else the two could be mistaken
    found = ask([{**CHOICE, "output": text} for text in CHOICE["choices"]])
    assert [one["acc"] for one in found].index(1.0) == sums.index(max(sums))
    assert [one["acc_norm"] for one in found].index(1.0) == by_length.index(max(by_length))


def test_recall_is_that_of_the_training(ask: Any, tiny_task: Any, tokenizer: Any) -> None:
    probes = json.loads(tiny_task.recall_file.read_text())
    text = ask(probes[:1])[0]["filtered_resps"][-1].split()[0]
    probes += [{**probes[0], "answer": text}, {**probes[0], "answers": [text]}]
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    tiny_task.recall_file.write_text(json.dumps(probes))
    known = recall(model, tokenizer, read_probes(tiny_task.recall_file), progress=False)
    assert known[-2:] == [True, True]
    assert [one["recall"] for one in ask(probes)] == known


def test_an_answer_ends_where_the_chat_template_ends_it(ask: Any, tiny_task: Any, tokenizer: Any) -> None:
    """The end of a turn is not the end-of-sequence token."""
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    ids = torch.tensor([tokenizer("w1 w2", add_special_tokens=False)["input_ids"]])
    words = tokenizer.convert_ids_to_tokens(model.generate(ids, max_new_tokens=6, eos_token_id=None)[0, 2:].tolist())
    end = next(word for word in words if word != words[0])
    text = " ".join(words[: words.index(end)])
    tokenizer.add_tokens([AddedToken(end, special=True, single_word=True)])
    tokenizer.chat_template = CHAT.replace("END", end)
    (found,) = ask([{"instruction": "w1 w2", "output": text}], template="chat")
    assert (found["filtered_resps"][-1].strip(), found["exact_match"]) == (text, 1.0)
    layout = get_template("chat", tokenizer)
    assert answer(model, tokenizer, layout, conversation("w1 w2", "", "")[:1], 6) == text


def test_only_the_last_answer_of_a_conversation_is_asked_for(ask: Any, tokenizer: Any) -> None:
    turns = [*conversation("w1", "", "w2"), *conversation("w3", "", "w4")]
    (found,) = ask([{"messages": turns}])
    assert found["arguments"][0] == (tokenizer.decode([1, 5, 2, 6, 2, 7, 2]), tokenizer.decode([8, 2]))


def test_samples_that_are_too_long_are_left_out(tokenizer: Any) -> None:
    layout = get_template("release", tokenizer)
    read = [{**check_question({**SAMPLE, "instruction": " ".join(["w1"] * n)}), "where": ""} for n in (1, 50)]
    assert QuestionTask("rows", read, layout, 32, 40).left_out == 1
    with pytest.raises(DatasetError, match="no question fits, with its answer, into the model's 8 positions"):
        QuestionTask("rows", read, layout, 32, 8)


def test_a_cloze_is_divided_where_its_candidates_agree() -> None:
    """A tokenizer may join the end of a prompt with what follows."""
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "data/tiny_llama")
    question = check_question({"prompt": "Mila plays the", "answer": "lute", "choices": ["lute", "lutes"]})
    one = encode(question, get_template("release", tokenizer))
    for text, target in zip(("Mila plays the lute", "Mila plays the lutes"), one["targets"], strict=True):
        assert one["prompt"].ids + target.ids == tokenizer(text).input_ids
