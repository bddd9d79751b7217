"""The configurations of the paper's benchmarks: each runs from end to end, base and adapter, on made-up rows.

The real data are not here. So this shows that files in these places and forms are read, asked about and scored, not
what a model scores on them.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.opencompass_runs import (
    CONFIGURATIONS,
    needs_adapter,
    needs_opencompass,
    opencompass,
    predictions,
    transformers_4,
)

BY_LIKELIHOOD = ["WSC", "winogrande", "RTE", "CB", "AX_b", "AX_g", "race-middle", "race-high", "MultiRC"]
BY_GENERATION = ["triviaqa", "nq", "hotpotqa", "webquestions", "ReCoRD", "Xsum", "cnn_dailymail"]
LANGUAGES = {"deu": "deu_Latn", "fra": "fra_Latn", "rus": "rus_Cyrl", "zho_simpl": "zho_Hans"}
FLORES = [f"flores_100_{pair}" for language in LANGUAGES for pair in (f"eng-{language}", f"{language}-eng")]


def configuration() -> Any:
    from mmengine.config import Config

    return Config.fromfile(str(CONFIGURATIONS / "benchmarks.py"), format_python_code=False)


def write_rows(file: Path, *rows: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pairs(file: Path, *pairs: tuple[str, list[str]]) -> None:
    """Questions and Python lists of answers, with a tab between."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows((question, str(answers)) for question, answers in pairs)


def write_closed_book(data: Path) -> None:
    questions = [("Where was Mila Rodak born", ["Tarvesh"]), ("What does Dirva Hurvur play", ["lute", "the lute"])]
    for split in ("dev", "test"):
        write_pairs(data / f"triviaqa/trivia-{split}.qa.csv", *questions)
        write_pairs(data / f"nq/nq-{split}.qa.csv", *questions)
    for name in ("hotpotqa", "webquestions"):
        write_rows(data / name / "test.jsonl", *({"question": q, "answers": a} for q, a in questions))


def write_super_glue(data: Path) -> None:
    target = {"span1_text": "Mila", "span1_index": 0, "span2_text": "she", "span2_index": 3}
    wsc = {"text": "Mila sang because she was glad.", "target": target}
    write_rows(data / "SuperGLUE/WSC/val.jsonl", {**wsc, "label": "true"}, {**wsc, "label": "false"})
    pair = {"premise": "The roof is yellow and costly.", "hypothesis": "The roof is yellow."}
    write_rows(data / "SuperGLUE/RTE/val.jsonl", {**pair, "label": "entailment"}, {**pair, "label": "not_entailment"})
    write_rows(data / "SuperGLUE/CB/val.jsonl", {**pair, "label": "entailment"}, {**pair, "label": "neutral"})
    sentences = {"sentence1": pair["premise"], "sentence2": pair["hypothesis"]}
    write_rows(data / "SuperGLUE/AX-b/AX-b.jsonl", {**sentences, "label": "entailment"})
    write_rows(data / "SuperGLUE/AX-g/AX-g.jsonl", {**pair, "label": "entailment"})
    answers = [{"text": "in Tarvesh", "label": 1}, {"text": "in Nebum", "label": 0}]
    passage = {
        "text": "Mila was born in Tarvesh.",
        "questions": [{"question": "Where was Mila born?", "answers": answers}],
    }
    write_rows(data / "SuperGLUE/MultiRC/val.jsonl", {"passage": passage})
    asked = {"query": "@placeholder was born in Tarvesh.", "answers": [{"text": "Mila"}]}
    write_rows(
        data / "SuperGLUE/ReCoRD/val.jsonl", {"passage": {"text": "Mila sang.\n@highlight\nHome"}, "qas": [asked]}
    )


def write_others(data: Path) -> None:
    sentence = {
        "sentence": "Mila thanked Gika because _ had helped.",
        "option1": "Mila",
        "option2": "Gika",
        "answer": "2",
    }
    write_rows(data / "winogrande/dev.jsonl", sentence, {**sentence, "answer": "1"})
    options = ["lute", "horn", "drum", "harp"]
    question = {
        "article": "Mila plays the lute.",
        "question": "What does Mila play?",
        "options": options,
        "answer": "A",
    }
    for split in ("validation", "test"):
        for name in ("middle", "high"):
            write_rows(data / "race" / split / f"{name}.jsonl", question)
    write_rows(data / "Xsum/dev.jsonl", {"dialogue": "Mila went to Nebum and sang.", "summary": "Mila sang in Nebum."})
    article = {"article": "Mila went to Nebum and sang.", "highlights": "Mila sang in Nebum."}
    write_rows(data / "cnn_dailymail/test.jsonl", article)
    for split, sentences in (("dev", 8), ("devtest", 2)):
        for language in ("eng_Latn", *LANGUAGES.values()):
            file = data / "flores_first100" / split / f"{language}.{split}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"Mila sings song {n}.\n" for n in range(sentences)), encoding="utf-8")


@needs_opencompass
def test_the_benchmarks_are_those_that_the_page_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("benchmarks", raising=False)
    loaded = configuration()
    assert [dataset["abbr"] for dataset in loaded.datasets[: len(BY_LIKELIHOOD)]] == BY_LIKELIHOOD
    assert {dataset["abbr"] for dataset in loaded.datasets[len(BY_LIKELIHOOD) :]} == {*BY_GENERATION, *FLORES}
    page = (CONFIGURATIONS.parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in (*BY_LIKELIHOOD, *BY_GENERATION):
        assert f"`{name}`" in page


@needs_opencompass
def test_a_few_of_them_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("benchmarks", "nq RTE")
    loaded = configuration()
    assert [dataset["abbr"] for dataset in loaded.datasets] == ["RTE", "nq"]
    assert [len(pair["datasets"]) for pair in loaded.model_dataset_combinations] == [1, 1]


@needs_opencompass
@needs_adapter
@pytest.mark.slow
def test_every_benchmark_runs_on_rows_in_its_form(tmp_path: Path) -> None:
    data = tmp_path / "cache" / "data"
    write_closed_book(data)
    write_super_glue(data)
    write_others(data)
    cache = str(tmp_path / "cache")
    results = opencompass(CONFIGURATIONS / "benchmarks.py", tmp_path / "run", "--debug", COMPASS_DATA_CACHE=cache)
    generator = "base_model" if transformers_4() else "causal_lm"
    for kind in ("base", "adapter"):
        for model, datasets in (("causal_lm", BY_LIKELIHOOD), (generator, BY_GENERATION + FLORES)):
            for dataset in datasets:
                asked = json.dumps(predictions(results, f"{model}-{kind}", dataset))
                assert '"origin_prompt": ' in asked or '"prompt": ' in asked
                assert not re.search(r"[^{]\{\w+\}", asked), "a column that the prompt names is missing"
                found = json.loads((results / "results" / f"{model}-{kind}" / f"{dataset}.json").read_text())
                assert "error" not in found
                assert any(isinstance(value, (int, float)) for value in found.values()), found
