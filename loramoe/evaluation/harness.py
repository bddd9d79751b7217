"""lm-eval with the tokens of the training: its tasks made of our questions, and its model of our adapters.

lm-eval asks in text, which its model tokenises. Here the text of a question carries the token ids that the prompt
template of the training gives it, and the model takes those. Tasks of lm-eval's own are asked as they are.
"""

# ruff: noqa: D102 -- the methods of both classes are lm-eval's, and described there

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, weighted_perplexity
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from loramoe.data import IGNORE_INDEX, DatasetError, Message, PromptTemplate, TemplateError
from loramoe.data.sources import hash_of
from loramoe.decoding import GREEDY, end_tokens, pad_id, pad_left
from loramoe.evaluation.answers import exact_match, f1, joined, starts_with
from loramoe.evaluation.questions import Question
from loramoe.evaluation.recall import longest_answer, prompt_ids
from loramoe.loading import BaseArguments, load_model
from loramoe.utils import write_text

METRICS = ("acc", "acc_norm", "exact_match", "f1", "recall", "perplexity")


class Tokens(str):
    """A text and the token ids that it stands for."""

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int] = ()) -> Tokens:
        """Attaches ids to a text; pickle calls this without ids, and restores them itself."""
        tokens = super().__new__(cls, text)
        tokens.ids = list(ids)
        return tokens


def encode(question: Question, template: PromptTemplate) -> Question:
    """Adds to a question its `prompt`, its `targets` (the choices, or the answer) and what to continue, `start`.

    Raises:
        TemplateError: If the template cannot render the question; its place is named.
    """
    candidates = question["choices"] or question["answers"][:1]
    try:
        ids = (_cloze if question["cloze"] else _chat)(question["messages"], candidates, template)
    except TemplateError as error:
        raise TemplateError(f"{question['where']}: {error}") from error
    start, prompt, *targets = (Tokens(template.tokenizer.decode(row), row) for row in ids)
    return {**question, "start": start, "prompt": prompt, "targets": targets}


def _chat(messages: Sequence[Message], candidates: Sequence[str], template: PromptTemplate) -> list[list[int]]:
    prompt = template.chat_ids(messages)
    rows = [prompt, prompt]
    for one in template.encode([[*messages, Message(role="assistant", content=text)] for text in candidates]):
        if isinstance(one, TemplateError):
            raise one
        # The last learnt tokens: earlier answers are learnt too, and a template may write more after the last one.
        backwards = dropwhile(IGNORE_INDEX.__eq__, reversed(one.labels))
        rows.append([*takewhile(IGNORE_INDEX.__ne__, backwards)][::-1])
    return rows


def _cloze(messages: Sequence[Message], candidates: Sequence[str], template: PromptTemplate) -> list[list[int]]:
    """A prompt ends where all candidates still agree, since a tokenizer may join its end with what follows."""
    text, tokenizer = messages[-1]["content"], template.tokenizer
    start = prompt_ids(tokenizer, text)
    wholes = [prompt_ids(tokenizer, joined(text, candidate)) for candidate in candidates]
    columns = zip(start, *(whole[:-1] for whole in wholes), strict=False)
    shared = len([*takewhile(lambda column: len(set(column)) == 1, columns)])
    return [start, start[:shared], *(whole[shared:] for whole in wholes)]


class QuestionTask(Task):  # type: ignore[misc]  # lm-eval is not typed
    """A file of questions as a task of lm-eval: each is asked by the likelihood of its targets and by generation.

    Questions that are longer than the model's `positions`, with their answers, are left out and counted.

    Raises:
        TemplateError: If the template cannot render a question.
        DatasetError: If no question is short enough.
    """

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(
        self, name: str, questions: Sequence[Question], template: PromptTemplate, max_new_tokens: int, positions: Any
    ) -> None:
        tokenizer, ends = template.tokenizer, list(template.end_ids)
        enough = longest_answer(tokenizer, [text for one in questions for text in one["answers"]])
        self._most_new = {False: max_new_tokens, True: min(max_new_tokens, enough)}  # of a question, of a cloze
        encoded = [encode(one, template) for one in questions]
        self._questions = [one for one in encoded if positions is None or self._length(one) <= positions]
        if not self._questions:
            raise DatasetError(f"{name}: no question fits, with its answer, into the model's {positions} positions.")
        self.left_out = len(encoded) - len(self._questions)
        self._generation = {**GREEDY, "until": [tokenizer.decode([end]) for end in ends], "eos_token_id": ends}
        # Not super().__init__, which takes a configuration for the task's name.
        self._config = TaskConfig(task=name, num_fewshot=0, generation_kwargs=self._generation)
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self.set_fewshot_seed(0)

    def _length(self, one: Question) -> int:
        generated = len(one["start"].ids) + self._most_new[one["cloze"]]
        return max(generated, len(one["prompt"].ids) + max(len(target.ids) for target in one["targets"]))

    def has_training_docs(self) -> bool:
        return False

    has_validation_docs = has_training_docs

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[Question]:
        return self._questions

    def doc_to_text(self, doc: Question) -> str:
        return str(doc["prompt"])

    def doc_to_target(self, doc: Question) -> str:
        return str(doc["answers"][0])

    def construct_requests(self, doc: Question, ctx: str, metadata: Any = None, **_: Any) -> list[Instance]:
        options = {**self._generation, "max_gen_toks": self._most_new[doc["cloze"]]}
        asked: list[Any] = [("loglikelihood", (doc["prompt"], target)) for target in doc["targets"]]
        asked.append(("generate_until", (doc["start"], options)))
        return [Instance(kind, doc, one, idx, metadata=metadata) for idx, (kind, one) in enumerate(asked)]

    def process_results(self, doc: Question, results: Sequence[Any]) -> dict[str, Any]:
        *likelihoods, text = results
        sums = [likelihood for likelihood, _ in likelihoods]
        answers, choices = doc["answers"], doc["choices"]
        right = choices.index(answers[0]) if choices else 0
        figures: dict[str, Any] = {"perplexity": (sums[right], len(doc["targets"][right].ids))}
        if choices:
            by_length = [one / len(choice.strip()) for one, choice in zip(sums, choices, strict=True)]
            figures["acc"] = float(sums.index(max(sums)) == right)
            figures["acc_norm"] = float(by_length.index(max(by_length)) == right)
        if doc["cloze"]:
            return {**figures, "recall": float(any(starts_with(text, answer) for answer in answers))}
        return {**figures, "exact_match": exact_match(text, answers), "f1": f1(text, answers)}

    def aggregation(self) -> dict[str, Any]:
        return {**dict.fromkeys(METRICS, mean), "perplexity": weighted_perplexity}

    def higher_is_better(self) -> dict[str, bool]:
        return {name: name != "perplexity" for name in METRICS}


class AdapterLM(HFLM):  # type: ignore[misc]
    """lm-eval's model of transformers, loaded as by the other commands, which takes the ids of `Tokens`."""

    def _create_model(self, pretrained: str, peft: str | None = None, **options: Any) -> None:
        arguments = BaseArguments(pretrained, dtype=options["dtype"], load_in_kbits=options["load_in_kbits"])
        self._model = load_model(arguments, peft, str(self._device))

    def _model_generate(self, *arguments: Any, eos_token_id: Sequence[int] | None = None, **options: Any) -> Any:
        if eos_token_id is not None:
            options["eos_token_id"] = end_tokens(self.model.generation_config, self.tokenizer, eos_token_id)
        return super()._model_generate(*arguments, **options)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(context, Tokens) and isinstance(continuation, Tokens):
            return context.ids, continuation.ids
        return super()._encode_pair(context, continuation)  # type: ignore[no-any-return]

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        return string.ids if isinstance(string, Tokens) else list(super().tok_encode(string, *arguments, **options))

    def tok_batch_encode(self, strings: Sequence[str], *arguments: Any, **options: Any) -> Any:
        if isinstance(strings[0], Tokens):
            rows = [self.tok_encode(text) for text in strings]
            return pad_left(rows, pad_id(self.tokenizer), torch.device("cpu"))
        return super().tok_batch_encode(strings, *arguments, **options)


def run_model(
    flags: argparse.Namespace, base: str, name: str, adapter: str | None, tasks: Sequence[Any], tokenizer: Any
) -> Any:
    """The samples of one model; lm-eval's results are written at once, its answers are cached for later runs."""
    folder = Path(flags.output_dir)
    gc.collect()  # the model before this one
    loading = {key: getattr(flags, key) for key in ("device", "dtype", "load_in_kbits")}
    shape = {"tokenizer": tokenizer, "batch_size": flags.batch_size, "softmax_dtype": "float32"}
    # Cached answers are those of the same files.
    files = [file for place in (base, adapter) if place for file in sorted(Path(place).glob("*.*"))]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.suffix != ".md"]
    found = simple_evaluate(
        AdapterLM(base, peft=adapter, **shape, **loading),
        tasks=list(tasks),
        task_manager=TaskManager(include_defaults=False),
        limit=flags.limit,
        gen_kwargs={"max_gen_toks": flags.max_new_tokens} if flags.max_new_tokens else None,
        use_cache=str(folder / "cache" / f"{name}-{hash_of([base, states, loading])[:12]}"),
        bootstrap_iters=0,
    )
    if found is None:  # in all processes but the first
        return None
    write_text(folder / f"{name}.json", json.dumps(found, default=str, indent=1))
    print(f"{name}: {sum(map(len, found['samples'].values())):,} samples, {folder / name}.json", flush=True)
    return found["samples"]
