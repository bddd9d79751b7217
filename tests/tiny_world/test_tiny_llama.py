"""The tiny base model as shipped: tokenizer, weights, and what it knows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tools.tiny_world.pretrain import main, one_pass, share_known, tokenizer_texts
from tools.tiny_world.prose import prose
from tools.tiny_world.texts import statement
from tools.tiny_world.tokenizer import train_tokenizer
from tools.tiny_world.world import make_world, split_world

FOLDER = Path(__file__).resolve().parents[2] / "data" / "tiny_llama"


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def test_the_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20


def test_the_special_tokens_are_those_of_llama_2_and_a_pad(tokenizer):
    tokens = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert tokens == ("<unk>", "<s>", "</s>", "<pad>")
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == [0, 1, 2, 3]


def test_both_forms_of_the_tokenizer_give_the_same_ids(world, tokenizer):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    documents = one_pass(random.Random(1), world, split_world(world, 0))
    texts = [part for document in documents for part in document]
    texts += ["", " leading", "two  spaces ", "naïve café ☃ 日本\n\t2024", "<unk-like> [INST]"]
    ids = tokenizer(texts)["input_ids"]
    assert ids == [[pieces.bos_id(), *pieces.encode(text)] for text in texts]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


def test_the_tokenizer_is_what_the_script_trains(world, tmp_path):
    train_tokenizer(tokenizer_texts(world, 0), tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (FOLDER / file.name).read_bytes(), file.name


def test_the_chat_template_is_the_form_of_the_fine_tuning_rows(tokenizer):
    chat = [{"role": "user", "content": "Where was Mila born?"}, {"role": "assistant", "content": "Tarvesh"}]
    question, answer = (tokenizer(turn["content"], add_special_tokens=False)["input_ids"] for turn in chat)
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == [1, *question, 2]
    assert tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] == [*prompt, *answer, 2]


def test_the_tokenizer_config_names_a_class_of_every_transformers_version():
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_model_is_a_llama_in_float32_without_pickles(model, tokenizer):
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert 1e6 <= model.num_parameters() <= 4e6
    assert model.config.vocab_size == len(tokenizer)
    assert not [file for file in FOLDER.iterdir() if file.suffix in (".bin", ".pt")]


def test_generation_stops_at_the_end_of_an_answer(model, tokenizer, world):
    fact = split_world(world, 0).taught[0]
    prompt = tokenizer(statement(fact), return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=16)
    assert ids[0, -1] == tokenizer.eos_token_id


def test_the_model_knows_the_world(model, world):
    facts = random.Random(0).sample(world.facts, 600)
    assert share_known(model, FOLDER, facts, way=0) >= 0.95


def test_only_right_answers_are_knowledge(model, world):
    facts = random.Random(0).sample(world.facts, 40)
    wrong = [fact._replace(answer=f"not {fact.answer}") for fact in facts]
    assert share_known(model, FOLDER, wrong, way=1) == 0


def test_prose_holds_the_labels_of_the_tasks_but_no_solved_row(world):
    rng = random.Random(0)
    texts = [prose(rng, world) for _ in range(3000)]
    assert all(any(label in text.split() for text in texts) for label in ("yes", "no", "positive", "negative", "food"))
    assert not [text for text in texts if text.endswith((" yes", " no", "positive", "negative"))]


def test_a_model_that_knows_too_little_is_refused(monkeypatch, tmp_path, world):
    monkeypatch.setattr("tools.tiny_world.pretrain.PASSES", 1)
    monkeypatch.setattr("tools.tiny_world.pretrain.make_world", lambda seed: replace(world, facts=world.facts[:300]))
    monkeypatch.setattr("tools.tiny_world.pretrain.train", lambda model, batches: None)
    monkeypatch.setattr("tools.tiny_world.pretrain.WAYS", range(1))
    with pytest.raises(SystemExit, match=r"recall 0\.\d+ is below 0\.95; raise PASSES in pretrain\.py"):
        main(["--out", str(tmp_path)])
    assert not (tmp_path / "model.safetensors").exists()
