"""A model asked: what is told of each question, the same in any batch and order, and the same as elsewhere here."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AddedToken

from loramoe.data import DatasetError, SftCollator, get_template, read_samples
from loramoe.evaluation import Settings, exact_match, f1, prepare, read_task, score
from loramoe.generate import answer
from loramoe.recall import prompt_ids, read_probes, recall


def asked(model, tokenizer, file, batch_size: int = 4, **settings):
    chosen = Settings(**{"max_new_tokens": 5, **settings})
    return score(model, tokenizer, prepare(read_task(file), tokenizer, chosen), chosen, batch_size, progress=False)


def close(found, expected) -> None:
    assert [set(row) for row in found] == [set(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.pop("log_likelihood") == pytest.approx(other.pop("log_likelihood"), rel=1e-9)
        assert row == other


def recorded(model, tokenizer, prompt: str, count: int) -> list[str]:
    """The words that follow a prompt."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt_ids(tokenizer, prompt)[1:]])
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.convert_ids_to_tokens(ids[0, -count:].tolist())


def test_neither_batch_nor_order_change_anything(model, tokenizer, write, questions) -> None:
    model.double()
    expected = asked(model, tokenizer, write(questions), batch_size=1)
    close(asked(model, tokenizer, write(questions), batch_size=7), [dict(row) for row in expected])
    turned = asked(model, tokenizer, write(questions[::-1]))[::-1]
    close([row | {"where": ""} for row in turned], [row | {"where": ""} for row in expected])


def test_what_is_generated_is_what_generate_answers(model, tokenizer, write, questions) -> None:
    for row, question in zip(asked(model, tokenizer, write(questions)), questions, strict=True):
        if "instruction" in question:
            said = answer(model, tokenizer, question["instruction"], question["input"], max_new_tokens=5)
            accepted = [question["output"], *question.get("answers", [])]
            assert row["prediction"] == said
            assert (row["exact_match"], row["f1"]) == (exact_match(said, accepted), f1(said, accepted))
            assert "recall" not in row


def test_an_answer_ends_where_the_chat_template_ends_it(model, tokenizer, write) -> None:
    """The end of a turn is not the end-of-sequence token; `generate`, exact match and recall all stop at it."""
    whole = recorded(model, tokenizer, "w1 w2", 6)
    end = next(word for word in whole if word != whole[0])
    said = " ".join(whole[: whole.index(end)])
    tokenizer.add_tokens([AddedToken(end, special=True, single_word=True)])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}END {% endif %}{% endfor %}"
    ).replace("END", end)
    question = {"instruction": "w1 w2", "input": "", "output": said, "task_type": 1}
    file = write([question, {"prompt": "w1 w2", "answer": said}])
    found, cloze = asked(model, tokenizer, file, prompt_template="chat", max_new_tokens=6)
    assert (found["prediction"], found["exact_match"], cloze["recall"]) == (said, 1.0, 1.0)
    assert cloze["prediction"] == said
    assert answer(model, tokenizer, "w1 w2", template="chat", max_new_tokens=6) == said
    assert asked(model, tokenizer, file, max_new_tokens=6)[1]["prediction"] != said


def test_recall_is_that_of_recall(model, tokenizer, tiny_task, write) -> None:
    probes = json.loads(tiny_task.recall_file.read_text())
    first = recall(model, tokenizer, read_probes(tiny_task.recall_file), progress=False)
    row = asked(model, tokenizer, tiny_task.recall_file)[0]
    probes.append({"prompt": probes[0]["prompt"], "answer": row["prediction"].split()[0]})
    probes.append({"prompt": probes[0]["prompt"], "answer": "w59", "answers": [row["prediction"].split()[0]]})
    found = asked(model, tokenizer, write(probes))
    assert [row["recall"] for row in found] == [*map(float, first), 1.0, 1.0]
    assert "exact_match" not in found[0]


def test_the_perplexity_is_that_of_the_training(model, tokenizer, tiny_task) -> None:
    samples = [sample.messages for sample in read_samples(tiny_task.test_file)]
    encoded = get_template("release", tokenizer).encode(samples)
    features = [{"input_ids": one.input_ids, "labels": one.labels, "task_types": 0} for one in encoded]
    batch = SftCollator(tokenizer.pad_token_id)(features)
    del batch["task_types"]
    with torch.no_grad():
        loss = model.eval()(**batch).loss.item()
    found = asked(model, tokenizer, tiny_task.test_file, measures=("likelihood",))
    told = -sum(row["log_likelihood"] for row in found) / sum(row["tokens"] for row in found)
    assert told == pytest.approx(loss, rel=1e-5)


def test_the_likeliest_choice_is_chosen(model, tokenizer, write) -> None:
    row = {"instruction": "w1", "input": "", "output": "w1", "task_type": 0, "choices": ["w3 w4 w5", "w1", "w2"]}
    singles = [{**row, "output": text, "choices": [text, "w0 w0"]} for text in row["choices"]]
    likelihoods = [one["log_likelihood"] for one in asked(model, tokenizer, write(singles))]
    per_character = [figure / len(text) for figure, text in zip(likelihoods, row["choices"], strict=True)]
    best, best_per_character = (row["choices"][f.index(max(f))] for f in (likelihoods, per_character))
    assert best != best_per_character  # or else the two could be mistaken for each other
    for text in row["choices"]:
        (found,) = asked(model, tokenizer, write([{**row, "output": text}]))
        assert found["choice"] == best
        assert (found["accuracy"], found["accuracy_per_character"]) == (text == best, text == best_per_character)


def test_an_adapter_changes_the_scores_and_without_it_the_base_is_asked(
    adapted, tiny_llama, tokenizer, write, questions
) -> None:
    file, model = write(questions), adapted()
    with model.disable_adapter():
        assert asked(model, tokenizer, file) == asked(tiny_llama(), tokenizer, file)
    assert asked(model, tokenizer, file) != asked(tiny_llama(), tokenizer, file)


@pytest.mark.parametrize(("measure", "missing"), [("likelihood", "prediction"), ("generation", "log_likelihood")])
def test_one_measure_alone(model, tokenizer, write, questions, measure: str, missing: str) -> None:
    found = asked(model, tokenizer, write(questions), measures=(measure,))
    assert all(missing not in row for row in found)
    assert [row["task_type"] for row in found] == [question.get("task_type") for question in questions]


def test_the_mode_of_the_model_is_left_as_it_was(model, tokenizer, write, questions) -> None:
    model.config.attention_dropout = 0.5
    once = [asked(model.train(), tokenizer, write(questions)) for _ in range(2)]
    assert model.training
    assert once[0] == once[1]


def test_what_is_too_long_is_left_out_and_counted(tokenizer, write, questions) -> None:
    task = read_task(write(questions))
    settings = Settings(max_new_tokens=3, max_seq_length=12)
    prepared = prepare(task, tokenizer, settings, positions=64)
    assert 0 < prepared.too_long < len(questions)
    for request in prepared.requests:
        assert len(request.prompt) + max(3, *map(len, request.targets)) <= 12
    assert prepare(task, tokenizer, Settings(max_new_tokens=3), positions=12).examples == prepared.examples
    assert prepare(task, tokenizer, settings).too_long == prepared.too_long
    assert prepare(task, tokenizer, Settings()).too_long == 0


def test_generation_needs_room_likelihood_does_not(tokenizer, write, questions) -> None:
    task = read_task(write(questions))
    with pytest.raises(
        DatasetError, match=r"task.json: none of the 23 rows fits, .*, into max_seq_length=64. Raise it"
    ):
        prepare(task, tokenizer, Settings(max_new_tokens=70), positions=64)
    assert prepare(task, tokenizer, Settings(("likelihood",), max_new_tokens=70), positions=64).too_long == 0
