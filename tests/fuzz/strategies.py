"""What the fuzz tests share: values of every kind, broken bytes, and how often to draw them.

Each property is drawn a few dozen times on every run of the tests, and thousands of times under the mark `slow`, from
CHAOS_SEED; hypothesis then prints how to draw a failure again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, 5e-324]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "0", "1,0", "true", "../../x", "/etc/x", "a\0b", "\ud800", "(", "[", ".*", "--x", "LORA", "é" * 300]

SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def times(fast: int, slow: int) -> Callable[..., Any]:
    """Runs a test with `count` examples: few each time, many where slow tests are run."""
    return pytest.mark.parametrize("count", [fast, pytest.param(slow, marks=pytest.mark.slow)], ids=["fast", "slow"])


def drawn(count: int) -> Callable[..., Any]:
    """Settings of a property: how many examples, and nothing kept on disk."""
    few = count < 500
    keep = settings(
        max_examples=count,
        derandomize=few,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return keep if few else lambda test: seed(int(os.environ["CHAOS_SEED"]))(keep(test))


@st.composite
def spoilt(draw: Any, valid: dict[str, Any], names: st.SearchStrategy[str] | None = None) -> dict[str, Any]:
    """A mapping with some fields dropped, replaced by anything, or added."""
    changed = dict(valid)
    for name in draw(st.lists(st.sampled_from(sorted(valid)), max_size=2)):
        changed.pop(name, None)
        if draw(st.booleans()):
            changed[name] = draw(VALUES)
    if names is not None and draw(st.booleans()):
        changed[draw(names)] = draw(VALUES)
    return changed


@st.composite
def broken(draw: Any, content: bytes) -> bytes:
    """Bytes of a file: whole, cut off, with some flipped or put in, or others altogether."""
    kind = draw(st.sampled_from(["whole", "cut off", "flipped", "put in", "others"]))
    if kind == "whole" or not content:
        return content
    at = draw(st.integers(0, len(content) - 1))
    if kind == "cut off":
        return content[:at]
    if kind == "flipped":
        places = draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8))
        flipped = bytearray(content)
        for place in places:
            flipped[place] ^= draw(st.integers(1, 255))
        return bytes(flipped)
    if kind == "put in":
        return content[:at] + draw(st.binary(max_size=8)) + content[at:]
    return draw(st.binary(max_size=64))


def as_json(value: Any) -> bytes:
    """JSON, with NaN and half surrogates as other programs write them."""
    return json.dumps(value).encode()


def told(error: BaseException) -> str:
    """The message of an error, which must not be empty."""
    message = str(error)
    assert message.strip(), f"{type(error).__name__} without a message"
    return message
