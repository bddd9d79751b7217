"""Values that transformers takes unseen are refused by the name of their flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from loramoe.training.plain_values import check_values


@dataclass
class Flags:
    learning_rate: float | None = 1e-4
    save_steps: float = 500
    per_device_eval_batch_size: int = 8
    lr_scheduler_kwargs: Any = None
    run_name: str = "nan"


@pytest.mark.parametrize("mapping", [None, {"a": 1}, '{"a": 1}', "options.json", "{}"])
def test_what_is_fine(mapping: Any):
    check_values(Flags(lr_scheduler_kwargs=mapping, learning_rate=None))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(value: float):
    with pytest.raises(ValueError, match=f"save_steps must be a finite number; got save_steps={value}. Correct it"):
        check_values(Flags(save_steps=value))


@pytest.mark.parametrize("value", [0, -1])
def test_batches_of_no_rows(value: int):
    with pytest.raises(ValueError, match=f"per_device_eval_batch_size must be at least 1; got .*={value}. Raise it."):
        check_values(Flags(per_device_eval_batch_size=value))


@pytest.mark.parametrize("text", ["", "1", "[1]", "{", "nan", "9" * 5000, "[" * 100_000, "null"])
def test_text_that_is_no_object(text: str):
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs must be a JSON object, .* Write for example --lr_sched"):
        check_values(Flags(lr_scheduler_kwargs=text))
