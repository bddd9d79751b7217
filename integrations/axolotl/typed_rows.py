"""A data set type of axolotl's: any other one that it knows, with the task type of each row kept.

A configuration names this module as the `type` of a data set, and the other one as its `input_transform`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axolotl import prompt_strategies
from axolotl.prompt_tokenizers import PromptTokenizingStrategy

COLUMN = "task_type"


class TypedStrategy(PromptTokenizingStrategy):  # type: ignore[misc]  # axolotl is not typed
    """Tokenises rows as another strategy does, and hands their task types on, which axolotl would drop.

    Args:
        inner: The other strategy.
    """

    def __init__(self, inner: PromptTokenizingStrategy) -> None:
        super().__init__(inner.prompter, inner.tokenizer, inner.train_on_inputs, inner.sequence_len)
        self.inner = inner
        self.filter_rows = inner.filter_rows

    @property
    def supports_batched(self) -> bool:
        """Whether `tokenize_prompt` is given columns of many rows, instead of one row."""
        return bool(self.inner.supports_batched)

    def tokenize_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenises a row, or columns of rows.

        Args:
            prompt: A row, or columns, with `task_type`.

        Returns:
            What the other strategy makes of it, and `task_types`.

        Raises:
            ValueError: If there is no task type.
        """
        if COLUMN not in prompt:
            raise ValueError(f"the rows need {COLUMN!r}, one whole number each; got the columns {sorted(prompt)}.")
        return {**self.inner.tokenize_prompt(dict(prompt)), "task_types": prompt[COLUMN]}


def load(tokenizer: Any, cfg: Any, ds_cfg: Mapping[str, Any]) -> TypedStrategy:
    """Makes the strategy; called by axolotl, which takes the module's name for the name of a type.

    Args:
        tokenizer: The model's tokenizer.
        cfg: axolotl's configuration.
        ds_cfg: The entry under `datasets:`; its `input_transform` names the type that makes tokens of a row.

    Returns:
        The strategy.

    Raises:
        ValueError: If axolotl has no strategy of that name.
    """
    name = ds_cfg.get("input_transform") or "chat_template"
    inner = prompt_strategies.load(name, tokenizer, cfg, ds_cfg)
    if inner is None:
        raise ValueError(
            f"input_transform must name a strategy of axolotl.prompt_strategies; got {name!r}. Write for example "
            "chat_template, alpaca_chat.load_no_prompt or completion."
        )
    return TypedStrategy(inner)
