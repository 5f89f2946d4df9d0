"""How a place in a PyTree reads: its path, a tuple of plain `str` and `int` keys."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from ._show import escaped


Key: TypeAlias = str | int
Path: TypeAlias = tuple[Key, ...]


def dotted(path: Path) -> str:
    """The path as a person writes it: `layers.0.v`."""
    return ".".join(map(str, path))


def names_of(paths: Sequence[Path]) -> list[str | Path]:
    """Each path in its dotted form, or as it is where several have that one."""
    names = list(map(dotted, paths))
    counts = Counter(names)
    pairs = zip(names, paths, strict=True)
    return [name if counts[name] == 1 else path for name, path in pairs]


def place(path: Path) -> str:
    """The path as an error names it: the root has no dotted form of its own."""
    return f"`{escaped(dotted(path))}`" if path else "the root `()`"
