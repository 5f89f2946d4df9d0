"""Tables of values: text for a terminal, HTML for a notebook.

Rows that differ only in the indices of their paths are folded into one if there are
more than a few, so a model of a thousand equal nodes gets a short table.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

from ._places import dotted, Path
from ._show import escaped, is_array_like, short


# So many rows are not folded: they are as quick to read as a pattern.
_FEW = 3
# A longer cell does not widen its column.
_WIDEST = 60


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: a path, the cells after it, and a size in bytes if there is one."""

    path: Path
    cells: tuple[str, ...]
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a one-line summary. `head` names the columns: the path, the cells, and
    the size if it ends in "bytes"."""

    summary: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]

    def text(self) -> str:
        """The table in columns."""
        if not self.rows:
            return escaped(self.summary)
        lines = [self.head, *self._lines()]
        widths = [
            max(n for n in map(len, column) if n <= _WIDEST)
            for column in zip(*lines, strict=True)
        ]
        align = [str.rjust if name == "bytes" else str.ljust for name in self.head]
        texts = [escaped(self.summary)]
        for line in lines:
            cells = map(lambda to, cell, width: to(cell, width), align, line, widths)
            texts.append("  ".join(cells).rstrip())
        return "\n".join(texts)

    def html(self) -> str:
        """The table in HTML."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>"
            for line in self._lines()
        )
        return (
            f"<table><caption>{html.escape(escaped(self.summary))}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _lines(self) -> list[tuple[str, ...]]:
        lines: list[tuple[str, ...]] = []
        for paths, row in folded(self.rows):
            size = "" if row.size is None else in_bytes(row.size * len(paths))
            cells = (pattern(paths), *row.cells, size)[: len(self.head)]
            lines.append(tuple(map(escaped, cells)))
        return lines


def folded(rows: Sequence[Row]) -> list[tuple[list[Path], Row]]:
    """Rows with the paths they stand for; only more than a few rows are folded."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_alike(row), []).append(row)
    lines: list[tuple[list[Path], Row]] = []
    for row in rows:
        group = groups[_alike(row)]
        if len(group) <= _FEW:
            lines.append(([row.path], row))
        elif group[0] is row:
            lines.append(([each.path for each in group], row))
    return lines


def _alike(row: Row) -> tuple[Any, ...]:
    # Names are not folded: a reader may be looking for one of them.
    keys = tuple(None if isinstance(key, int) else key for key in row.path)
    return keys, row.cells, row.size


def pattern(paths: Sequence[Path]) -> str:
    """Paths of one length in one pattern: `layers.{0..7}.v (8)`."""
    if len(paths) == 1:
        return dotted(paths[0]) or "()"
    columns = [list(dict.fromkeys(column)) for column in zip(*paths, strict=True)]
    # Indices are exact only if every combination of them is a path.
    exact = math.prod(map(len, columns)) == len(paths)
    keys = [
        str(column[0]) if len(column) == 1 else _choice(column) if exact else "*"
        for column in columns
    ]
    return f"{'.'.join(keys)} ({len(paths)})"


def _choice(keys: Sequence[Any]) -> str:
    pairs = itertools.pairwise(keys)
    if all(b == a + 1 for a, b in pairs):
        return f"{{{keys[0]}..{keys[-1]}}}"
    shown = list(map(str, keys))
    if len(shown) > 4:
        shown = [*shown[:2], "...", shown[-1]]
    return f"{{{','.join(shown)}}}"


def value_cells(value: Any, axis: int | None) -> tuple[str, str]:
    """Dtype and shape of an array, with its lane axis marked, or type and value."""
    if not is_array_like(value):
        return type(value).__name__, _shorten(short(value))
    shape = list(map(str, value.shape))
    if axis is not None and -len(shape) <= axis < len(shape):
        shape[axis] = counted(value.shape[axis], "lane")
    form = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
    return str(value.dtype), form


def size_of(value: Any) -> int | None:
    """The size of an array in bytes; `None` for other values."""
    if not is_array_like(value):
        return None
    return math.prod(value.shape) * value.dtype.itemsize


def in_bytes(count: int) -> str:
    """A number of bytes as people read it."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 leaf", "2 leaves"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
