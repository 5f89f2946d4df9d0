"""Rows of parametrised tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(rows: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """The rows, of which all but the chosen ones are slow."""
    found: list[Any] = []
    for row in rows:
        marks = () if row in chosen else (pytest.mark.slow,)
        values = row if isinstance(row, tuple) else (row,)
        found.append(pytest.param(*values, marks=marks))
    return found
