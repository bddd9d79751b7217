"""Recall: what counts as known, whatever the batch, the padding side or the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from loramoe.recall import Probe, answers, continue_greedily, main, prompt_ids, read_probes, recall


@pytest.fixture
def known(tiny_task):
    """A model, its tokenizer, and for prompts of different lengths what it says next, found one by one."""
    model = AutoModelForCausalLM.from_pretrained(tiny_task.base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_task.base)
    continuations = {}
    for length in range(1, 8):
        prompt = " ".join(f"w{length + n}" for n in range(length))
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        for _ in range(3):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        continuations[prompt] = tokenizer.decode(ids[0, -3:], skip_special_tokens=True)
    return model, tokenizer, continuations


def test_a_batch_of_different_lengths_says_what_each_would_alone(known):
    model, tokenizer, continuations = known
    for side in ("left", "right"):
        tokenizer.padding_side = side
        assert continue_greedily(model, tokenizer, list(continuations), 3) == list(continuations.values())


def test_hits_and_misses(known):
    model, tokenizer, continuations = known
    prompt, said = next(iter(continuations.items()))
    first, second = said.split()[:2]
    probes = [
        Probe(prompt, f" {first} "),
        Probe(prompt, f"{first} {second}"),
        Probe(prompt, "w59 w58"),
        Probe(prompt, second),
        Probe(prompt, first[:-1]),
    ]
    expected = [True, True, False, second == first, False]
    model.train()
    assert recall(model, tokenizer, probes, batch_size=3, progress=False) == expected
    assert model.training


def test_what_ended_an_answer_in_training_ends_it(known):
    model, tokenizer, continuations = known
    prompt, said = next((prompt, said) for prompt, said in continuations.items() if len(set(said.split())) > 1)
    first, end = said.split()[0], next(word for word in said.split() if word != said.split()[0])
    probes = [Probe(prompt, first), Probe(prompt, said)]
    assert recall(model, tokenizer, probes, progress=False) == [True, True]
    end_ids = tokenizer.convert_tokens_to_ids([end])
    assert recall(model, tokenizer, probes, progress=False, end_ids=end_ids) == [True, False]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("tea", "tea", True),
        ("\ntea, thanks", " tea", True),
        ("tea time", "tea", True),
        ("teacher", "tea", False),
        ("19", "1", False),
        ("été", "ét", False),
        ("coffee and tea", "tea", False),
        ("(a)b", "(a)", True),  # the answer itself ends its word
        ("a.b", "axb", False),  # no regular expression
        ("北京是首都", "北京", True),  # no spaces between words
        ("iPhone手机", "iPhone", True),
    ],
)
def test_an_answer_ends_where_a_word_ends(text: str, answer: str, expected: bool):
    assert answers(text, answer) is expected


def test_an_end_token_that_the_tokenizer_adds_is_left_out(known):
    tokenizer = known[1]
    assert prompt_ids(tokenizer, "w1") == [1, 5]
    frame = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = frame
    assert tokenizer("w1").input_ids == [1, 5, 2]
    assert prompt_ids(tokenizer, "w1") == [1, 5]


def test_probes_are_read(tmp_path: Path):
    file = tmp_path / "probes.json"
    file.write_text(json.dumps([{"prompt": "a", "answer": "b", "more": 1}]))
    assert read_probes(file) == [Probe("a", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a list of probes that is not empty"),
        ('{"prompt": "a"}', "expected a list of probes"),
        ('[{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": " "}]', 'entry 2: expected texts "prompt"'),
        ('[{"prompt": 3, "answer": "b"}]', "entry 1: expected texts"),
        ('["a"]', "entry 1: expected texts"),
    ],
)
def test_bad_probes(tmp_path: Path, text: str, message: str):
    file = tmp_path / "probes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_probes(file)


def test_no_probes(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file of recall probes at .*none.json"):
        read_probes(tmp_path / "none.json")


def test_command_line(known, tiny_task, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (prompt, said), *_ = known[2].items()
    file = tmp_path / "probes.json"
    file.write_text(json.dumps([{"prompt": prompt, "answer": said}, {"prompt": prompt, "answer": "w59 w59 w59"}]))
    main(["--model", str(tiny_task.base), "--file", str(file)])
    assert capsys.readouterr().out.splitlines()[-1] == "recall 0.5000 (1 of 2)"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adapter", "nowhere"], "no adapter at nowhere: adapter_config.json is not there. Correct the path."),
        ([], "there is no model to load. Set --adapter DIR, --base_model NAME, or both."),
        (["--adapter", "nowhere", "--file", "none.json"], "no file of recall probes at none.json"),
        (["--batch_size", "0"], "argument --batch_size: expected a whole number of at least 1, got '0'. Raise it."),
    ],
)
def test_mistakes_are_told_in_one_line(tiny_task, flags, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--file", str(tiny_task.recall_file), *flags])
    assert ended.value.code != 0
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("python -m loramoe.recall: ")
    assert message in said
