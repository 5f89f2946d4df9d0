"""Deltas and their structures in tables and error messages."""

from collections.abc import Iterable
from typing import Any

import jax.tree_util as jtu

from .._text._places import Path, place
from .._text._table import counted, in_bytes, Row, size_of, Table, value_cells
from .._tree._paths import first_difference


def delta_table(
    leaves: Iterable[tuple[Path, Any, int | None, frozenset[str]]], size: int | None
) -> Table:
    """The written leaves: their paths, values, lane axes and tags."""
    rows = tuple(
        Row(path, (*value_cells(x, axis), ", ".join(sorted(tags))), size_of(x))
        for path, x, axis, tags in leaves
    )
    parts = [
        counted(len(rows), "written leaf", "written leaves"),
        "no lanes" if size is None else counted(size, "lane"),
        *([in_bytes(sum(row.size or 0 for row in rows))] if rows else []),
    ]
    head = ("path", "type", "shape", "tags", "bytes")
    return Table(f"StateDelta: {', '.join(parts)}", head, rows)


def mismatch(
    got: jtu.PyTreeDef, expected: jtu.PyTreeDef, got_name: str, expected_name: str
) -> str:
    """The first place where two structures differ, and what each has there."""
    found = first_difference(got, expected)
    if found is None:
        return "they differ in a part that has no path."
    path, a, b = found
    return f"at {place(path)}, {got_name}: {a}; {expected_name}: {b}."
