"""A grid that a processor cannot carry says so before it starts."""

from __future__ import annotations

import re

import pytest
import torch

from experiments.knowledge_forgetting import processor

TOLD = (
    r"This scale computes in bfloat16, in which this processor takes 16 times as long as in float32: a run will take "
    r"hours, not minutes\. Take a GPU, or a processor with AVX-512 BF16 or AMX; or say --float32, in which "
    r"results are others than those in bfloat16 and have a folder of their own\."
)


def test_a_slow_processor_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: 16.4)
    told = processor.warning(bf16=True)
    assert told is not None
    assert re.fullmatch(TOLD, told)


@pytest.mark.parametrize(("bf16", "slowdown", "gpu"), [(True, 0.5, False), (False, 16.0, False), (True, 16.0, True)])
def test_nothing_is_told_where_it_is_no_burden(bf16: bool, slowdown: float, gpu: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(processor, "bfloat16_slowdown", lambda: slowdown)
    assert processor.warning(bf16) is None


def test_the_slowdown_is_measured_and_threads_stay_as_they_were():
    threads = torch.get_num_threads()
    assert 0.02 < processor.bfloat16_slowdown() < 1000
    assert torch.get_num_threads() == threads
