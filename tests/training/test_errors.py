"""Only what the user can mend loses its traceback."""

from __future__ import annotations

import pytest

from loramoe.data import DatasetError
from loramoe.training.errors import UsageError, as_usage_error


def test_an_error_of_the_named_kind_is_told_on_one_line():
    with pytest.raises(UsageError, match=r"^the flag: no such name$"), as_usage_error(OSError, about="the flag:"):
        raise FileNotFoundError("no such\n  name")


@pytest.mark.parametrize("error", [KeyError("a bug"), DatasetError("row 3"), UsageError("already told")])
def test_others_pass(error: Exception):
    with pytest.raises(type(error)) as passed, as_usage_error(ValueError):
        raise error
    assert passed.value is error
