"""Predicates, and how they combine: the algebra of filters."""

import dataclasses
import typing
from collections.abc import Callable
from types import EllipsisType
from typing import TYPE_CHECKING, TypeAlias

from .._text._places import Path


if TYPE_CHECKING:
    _Function: TypeAlias = Callable[..., typing.Any]
    _Sequence: TypeAlias = list[typing.Any] | tuple[typing.Any, ...]
    Filter: TypeAlias = type | str | bool | EllipsisType | _Function | _Sequence | None
    """What every parameter that takes a filter takes: see the table of filters.

    ```python
    >>> from chorax.filters import to_predicate
    >>> keep = to_predicate([int, lambda path, x: "bias" in path])
    >>> keep(("bias",), 0.5), keep(("weight",), 0.5)
    (True, False)

    ```
    """
else:
    # Anything else is to get chorax's own error, not that of a runtime type checker.
    Filter = typing.Any
Tags: TypeAlias = frozenset[str]
NO_TAGS: Tags = frozenset()


class Predicate:
    """A function of `(path, x)` that combines with `&`, `|` and `~`.

    `tags` are those that a delta gave to the leaf `x`.

    ```python
    >>> from chorax.filters import OfType, PathContains
    >>> keep = OfType(int) & ~PathContains("step")
    >>> keep(("count",), 3), keep(("step",), 3)
    (True, False)

    ```
    """

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        raise TypeError(f"{type(self).__name__} does not say what it keeps.")

    def __and__(self, other: Filter) -> "All":
        return All(self, other)

    def __rand__(self, other: Filter) -> "All":
        return All(other, self)

    def __or__(self, other: Filter) -> "Any":
        return Any(self, other)

    def __ror__(self, other: Filter) -> "Any":
        return Any(other, self)

    def __invert__(self) -> "Not":
        return Not(self)


class Combined(Predicate):
    """Several filters as one; equal if their parts are, in order."""

    filters: tuple[Predicate, ...]

    def __init__(self, *filters: Filter) -> None:
        # Imported here, since it creates combined filters itself.
        from ._reading import to_predicate

        self.filters = tuple(map(to_predicate, filters))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.filters == other.filters

    def __hash__(self) -> int:
        return hash((type(self), self.filters))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.filters))})"


class Any(Combined):
    """Keeps what at least one of its filters keeps; `Any()` keeps nothing.

    ```python
    >>> from chorax.filters import Any
    >>> Any(int, "hidden")(("n",), 3)
    True

    ```
    """

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        # Not by `any`, whose generator would turn a `StopIteration` into another error.
        kept = False
        for part in self.filters:
            kept = kept or part(path, x, tags)
        return kept


class All(Combined):
    """Keeps what every one of its filters keeps; `All()` keeps everything.

    ```python
    >>> from chorax.filters import All, PathContains
    >>> All(int, PathContains("n"))(("m",), 3)
    False

    ```
    """

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        kept = True
        for part in self.filters:
            kept = kept and part(path, x, tags)
        return kept


class Not(Combined):
    """Keeps what its filter does not keep.

    ```python
    >>> from chorax.filters import Not
    >>> Not(int)(("n",), 3)
    False

    ```
    """

    def __init__(self, filter: Filter) -> None:
        super().__init__(filter)

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        return not self.filters[0](path, x, tags)


@dataclasses.dataclass(frozen=True)
class Everything(Predicate):
    """Keeps everything; `True` and `...` mean the same.

    ```python
    >>> from chorax.filters import Everything
    >>> Everything()((), None)
    True

    ```
    """

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Nothing(Predicate):
    """Keeps nothing; `False` and `None` mean the same.

    ```python
    >>> from chorax.filters import Nothing
    >>> Nothing()((), None)
    False

    ```
    """

    def __call__(self, path: Path, x: object, tags: Tags = NO_TAGS) -> bool:
        return False
