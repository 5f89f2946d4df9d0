"""Written leaves as a table: text for a terminal, HTML for a notebook."""

import html
from collections.abc import Sequence
from typing import Any, TypeAlias

from ._show import short


# Path, value, lane axis, tags.
Row: TypeAlias = tuple[str, Any, int | None, frozenset[str]]
_HEAD = ("path", "type", "shape", "tags", "bytes")


def text_table(summary: str, rows: Sequence[Row]) -> str:
    """The rows under a one-line summary, in columns."""
    cells = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if name == "bytes" else cell.ljust(width)
            for name, cell, width in zip(_HEAD, line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
    if not rows:
        return summary
    return "\n".join([f"{summary}, {_bytes(sum(map(_size, rows)))}", *lines])


def html_table(summary: str, rows: Sequence[Row]) -> str:
    """The same as an HTML table."""
    head = "".join(f"<th>{name}</th>" for name in _HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in _cells(row)) + "</tr>"
        for row in rows
    )
    total = _bytes(sum(map(_size, rows)))
    return (
        f"<table><caption>{html.escape(summary)}, {total}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: Row) -> tuple[str, ...]:
    path, value, axis, tags = row
    tag_names = ", ".join(sorted(tags))
    if not _is_array(value):
        return path, type(value).__name__, _shorten(short(value)), tag_names, ""
    shape = list(map(str, value.shape))
    if axis is not None and -len(shape) <= axis < len(shape):
        shape[axis] = f"{shape[axis]} lanes"
    form = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
    return path, str(value.dtype), form, tag_names, _bytes(_size(row))


def _is_array(value: Any) -> bool:
    # Abstract arrays too: a delta may come out of `eqx.filter_eval_shape`.
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _size(row: Row) -> int:
    value = row[1]
    if not _is_array(value):
        return 0
    count = 1
    for length in value.shape:
        count *= length
    return count * value.dtype.itemsize


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
