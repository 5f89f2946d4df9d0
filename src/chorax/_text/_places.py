"""How paths, tuples of plain `str` and `int` keys, are written in messages."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from ._show import escaped


Key: TypeAlias = str | int
Path: TypeAlias = tuple[Key, ...]


def dotted(path: Path) -> str:
    """A path as people write it: `layers.0.v`."""
    return ".".join(map(str, path))


def names_of(paths: Sequence[Path]) -> list[str | Path]:
    """The dotted form of each path, or the path itself if others have that form."""
    names = list(map(dotted, paths))
    counts = Counter(names)
    pairs = zip(names, paths, strict=True)
    return [name if counts[name] == 1 else path for name, path in pairs]


def place(path: Path) -> str:
    """A path as errors name it; the root has no dotted form."""
    return f"`{escaped(dotted(path))}`" if path else "the root `()`"
