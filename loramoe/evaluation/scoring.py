"""A model asked all questions of a task, and what became of each.

Everything is tokenised before the first model is asked, so that nothing can be wrong with a later file when an earlier
one is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from loramoe.data import DatasetError, TemplateError, get_template
from loramoe.decoding import decode
from loramoe.evaluation.example import Example
from loramoe.evaluation.likelihood import log_likelihoods
from loramoe.evaluation.metrics import exact_match, f1
from loramoe.evaluation.requests import Request, encode
from loramoe.evaluation.tasks import Task
from loramoe.recall import answers, longest_answer

MEASURES = ("likelihood", "generation")

Scores = list[dict[str, Any]]
"""What became of each question: its place in the file, its task type, and figures by name."""


@dataclass(frozen=True)
class Settings:
    """How questions are asked; whatever changes an answer is here, so nothing of batches.

    Attributes:
        measures: Those of `MEASURES` to take.
        prompt_template: Layout of instructions, `"release"` or `"chat"`.
        max_new_tokens: Longest generated answer, in tokens.
        max_seq_length: Most tokens of a question with its answer. Default: the model's positions.
    """

    measures: tuple[str, ...] = MEASURES
    prompt_template: str = "release"
    max_new_tokens: int = 32
    max_seq_length: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A task as a model gets it.

    Attributes:
        task: The task.
        examples: Its questions, those left out that are too long.
        requests: Their tokens.
        end_ids: Tokens that end an answer in training.
    """

    task: Task
    examples: tuple[Example, ...]
    requests: tuple[Request, ...]
    end_ids: tuple[int, ...] = ()

    @property
    def too_long(self) -> int:
        """The number of questions that are left out."""
        return len(self.task.examples) - len(self.examples)


def prepare(task: Task, tokenizer: Any, settings: Settings, positions: int | None = None) -> Prepared:
    """Tokenises a task.

    Args:
        task: The task.
        tokenizer: The models' tokenizer.
        settings: How questions are asked.
        positions: Most tokens that the model takes, where it has a limit.

    Returns:
        The task's questions that are not too long, and their tokens.

    Raises:
        DatasetError: If no question is short enough.
        TemplateError: If a chat template cannot render a question; names its place.
        ValueError: If there is no such template, or the tokenizer does not suit it.
    """
    template = get_template(settings.prompt_template, tokenizer)
    try:
        requests = encode(task.examples, template, tokenizer)
    except TemplateError as error:
        raise TemplateError(f"{task.file}, {error}") from error
    longest = settings.max_seq_length or positions
    fitting = [
        (example, request)
        for example, request in zip(task.examples, requests, strict=True)
        if longest is None or _length(request, settings) <= longest
    ]
    if not fitting:
        raise DatasetError(
            f"{task.file}: none of the {len(requests):,} rows fits, prompt and answer together, into "
            f"max_seq_length={longest}. Raise it, lower max_new_tokens, or take a model of more positions."
        )
    examples, kept = zip(*fitting, strict=True)
    return Prepared(task, examples, kept, template.end_ids)


def _length(request: Request, settings: Settings) -> int:
    scored = len(request.prompt) + max(map(len, request.targets))
    generated = len(request.question) + settings.max_new_tokens
    return max(scored, generated if "generation" in settings.measures else 0)


def score(
    model: Any, tokenizer: Any, prepared: Prepared, settings: Settings, batch_size: int = 32, progress: bool = True
) -> Scores:
    """Asks a model all questions of a task.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        prepared: The task.
        settings: How questions are asked.
        batch_size: Questions that are asked at once.
        progress: Show progress bars.

    Returns:
        For each question its figures.

    Raises:
        UsageError: If a log-likelihood is not finite.
    """
    examples, requests = prepared.examples, prepared.requests
    scores: Scores = [{"where": example.where, "task_type": example.task_type} for example in examples]
    training = model.training
    model.eval()
    try:
        if "likelihood" in settings.measures:
            found = log_likelihoods(model, requests, batch_size, progress)
            for row, example, request, figures in zip(scores, examples, requests, found, strict=True):
                row.update(_likelihood_figures(example, request, figures))
        if "generation" in settings.measures:
            texts = _generate(model, tokenizer, prepared, settings.max_new_tokens, batch_size, progress)
            for row, example, text in zip(scores, examples, texts, strict=True):
                row.update(_generation_figures(example, text))
    finally:
        model.train(training)
    return scores


def _likelihood_figures(example: Example, request: Request, found: Sequence[float]) -> dict[str, Any]:
    right = example.candidates.index(example.output)
    figures: dict[str, Any] = {"log_likelihood": found[right], "tokens": len(request.targets[right])}
    if not example.choices:
        return figures
    per_character = [figure / len(text) for figure, text in zip(found, example.choices, strict=True)]
    chosen, chosen_per_character = found.index(max(found)), per_character.index(max(per_character))
    return figures | {
        "choice": example.choices[chosen],
        "accuracy": float(chosen == right),
        "accuracy_per_character": float(chosen_per_character == right),
    }


def _generation_figures(example: Example, text: str) -> dict[str, Any]:
    if example.cloze:
        return {"prediction": text, "recall": float(any(answers(text, answer) for answer in example.answers))}
    return {
        "prediction": text.strip(),
        "exact_match": exact_match(text, example.answers),
        "f1": f1(text, example.answers),
    }


def _generate(
    model: Any, tokenizer: Any, prepared: Prepared, max_new_tokens: int, batch_size: int, progress: bool
) -> list[str]:
    """What the model says to each question, greedily."""
    texts: dict[int, str] = {}
    with tqdm(total=len(prepared.requests), desc="generation", unit="row", disable=not progress, leave=False) as bar:
        for cloze in (False, True):
            asked = [index for index, example in enumerate(prepared.examples) if example.cloze is cloze]
            asked.sort(key=lambda index: len(prepared.requests[index].question), reverse=True)
            most = max_new_tokens
            if cloze and asked:  # no end token follows a cloze: without this, all would go on to the limit
                accepted = [answer for index in asked for answer in prepared.examples[index].answers]
                most = min(most, longest_answer(tokenizer, accepted))
            for start in range(0, len(asked), batch_size):
                batch = asked[start : start + batch_size]
                questions = [prepared.requests[index].question for index in batch]
                said = decode(model, tokenizer, questions, most, end_ids=prepared.end_ids)
                texts |= zip(batch, said, strict=True)
                bar.update(len(batch))
    return [texts[index] for index in range(len(prepared.requests))]
