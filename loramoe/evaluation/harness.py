"""lm-eval with the tokens of the training: its tasks made of our questions, and its model of our adapters.

lm-eval asks in text, which its model tokenises. Here the text of a question carries the token ids that the prompt
template of the training gives it, and the model takes those. Tasks of lm-eval's own are asked as they are.
"""

# ruff: noqa: D102 -- the methods of both classes are lm-eval's, and described there

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, weighted_perplexity
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM

from loramoe.data import IGNORE_INDEX, DatasetError, Encoded, Message, PromptTemplate, TemplateError
from loramoe.decoding import GREEDY, end_tokens, pad_id, pad_left
from loramoe.evaluation.answers import exact_match, f1, joined, starts_with
from loramoe.evaluation.questions import Question
from loramoe.evaluation.recall import longest_answer, prompt_ids
from loramoe.loading import BaseArguments, load_model

METRICS = ("acc", "acc_norm", "exact_match", "f1", "recall", "perplexity")


class Tokens(str):
    """A text and the token ids that it stands for."""

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int] = ()) -> Tokens:
        """Attaches ids to a text; pickle calls this without ids, and restores them itself."""
        tokens = super().__new__(cls, text)
        tokens.ids = list(ids)
        return tokens


def encode(questions: Sequence[Question], template: PromptTemplate, tokenizer: Any) -> list[Question]:
    """Adds to each question its `prompt`, its `targets` (the choices, or the answer) and what to continue, `start`.

    Raises:
        TemplateError: If the template cannot render a question; its place is named.
    """
    encoded = []
    for question in questions:
        candidates = question["choices"] or question["answers"][:1]
        ids = _cloze(question, candidates, tokenizer) if question["cloze"] else _chat(question, candidates, template)
        start, prompt, *targets = (Tokens(tokenizer.decode(row), row) for row in ids)
        encoded.append({**question, "start": start, "prompt": prompt, "targets": targets})
    return encoded


def _chat(question: Question, candidates: Sequence[str], template: PromptTemplate) -> list[list[int]]:
    chats = [[*question["messages"], Message(role="assistant", content=text)] for text in candidates]
    pairs = []
    for one in template.encode(chats):
        if isinstance(one, TemplateError):
            raise TemplateError(f"{question['where']}: {one}")
        pairs.append(_last_answer(one))
    return [pairs[0][0], pairs[0][0], *(target for _, target in pairs)]


def _last_answer(encoded: Encoded) -> tuple[list[int], list[int]]:
    """Divides a conversation before its last answer, and leaves out what follows that."""
    labels = encoded.labels
    stop = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    start = max((index for index, label in enumerate(labels[:stop]) if label == IGNORE_INDEX), default=-1) + 1
    return encoded.input_ids[:start], encoded.input_ids[start:stop]


def _cloze(question: Question, candidates: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """A prompt ends where all candidates still agree, since a tokenizer may join its end with what follows."""
    text = question["messages"][-1]["content"]
    start = prompt_ids(tokenizer, text)
    wholes = [prompt_ids(tokenizer, joined(text, candidate)) for candidate in candidates]
    shortest = min(len(start), *(len(whole) - 1 for whole in wholes))
    shared = next((n for n in range(shortest) if any(whole[n] != start[n] for whole in wholes)), shortest)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else (tokenizer.eos_token_id or 0)
    return [start, start[:shared] or [first], *(whole[shared:] for whole in wholes)]


class QuestionTask(Task):  # type: ignore[misc]  # lm-eval is not typed
    """A file of questions as a task of lm-eval: each is asked by the likelihood of its targets and by generation.

    Args:
        name: Name of the task.
        questions: Questions from `encode`.
        tokenizer: The tokenizer.
        end_ids: Tokens that ended an answer in training.
        max_new_tokens: Longest generated answer, in tokens.
        positions: The most tokens that the model takes; longer questions are left out. None: no limit.

    Raises:
        DatasetError: If no question is short enough.
    """

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(
        self,
        name: str,
        questions: Sequence[Question],
        tokenizer: Any,
        end_ids: Sequence[int],
        max_new_tokens: int = 32,
        positions: int | None = None,
    ) -> None:
        self._lengths = (
            max_new_tokens,
            longest_answer(tokenizer, [text for one in questions for text in one["answers"]]),
        )
        self._questions = [one for one in questions if positions is None or self._length(one) <= positions]
        self.left_out = len(questions) - len(self._questions)
        if not self._questions:
            raise DatasetError(f"{name}: no question fits, with its answer, into the model's {positions} positions.")
        until = [tokenizer.decode([end]) for end in end_ids]
        self._generation = {**GREEDY, "until": until, "eos_token_id": list(end_ids)}
        # Not super().__init__, which takes a configuration for the task's name.
        self._config = TaskConfig(task=name, num_fewshot=0, generation_kwargs={"until": until})
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self.set_fewshot_seed(0)

    def _most_new(self, question: Question) -> int:
        return min(self._lengths) if question["cloze"] else self._lengths[0]

    def _length(self, question: Question) -> int:
        generated = len(question["start"].ids) + self._most_new(question)
        return max(generated, len(question["prompt"].ids) + max(len(target.ids) for target in question["targets"]))

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
        options = {**self._generation, "max_gen_toks": self._most_new(doc)}
        arguments = [*((doc["prompt"], target) for target in doc["targets"]), (doc["start"], options)]
        kinds = ["loglikelihood"] * len(doc["targets"]) + ["generate_until"]
        pairs = zip(kinds, arguments, strict=True)
        return [Instance(kind, doc, one, idx, metadata=metadata) for idx, (kind, one) in enumerate(pairs)]

    def process_results(self, doc: Question, results: Sequence[Any]) -> dict[str, Any]:
        *likelihoods, text = results
        sums = [likelihood for likelihood, _ in likelihoods]
        choices = doc["choices"]
        right = choices.index(doc["answers"][0]) if choices else 0
        figures: dict[str, Any] = {"perplexity": (sums[right], len(doc["targets"][right].ids))}
        if choices:
            by_length = [one / len(choice.strip()) for one, choice in zip(sums, choices, strict=True)]
            figures["acc"] = float(sums.index(max(sums)) == right)
            figures["acc_norm"] = float(by_length.index(max(by_length)) == right)
        if doc["cloze"]:
            return {**figures, "recall": float(any(starts_with(text, answer) for answer in doc["answers"]))}
        return {**figures, "exact_match": exact_match(text, doc["answers"]), "f1": f1(text, doc["answers"])}

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
        pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
        return pair

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        return string.ids if isinstance(string, Tokens) else list(super().tok_encode(string, *arguments, **options))

    def tok_batch_encode(self, strings: Sequence[str], *arguments: Any, **options: Any) -> Any:
        if isinstance(strings[0], Tokens):
            rows = [self.tok_encode(text) for text in strings]
            return pad_left(rows, pad_id(self.tokenizer), torch.device("cpu"))
        return super().tok_batch_encode(strings, *arguments, **options)
