"""Filters: which nodes or leaves of a tree are meant.

Wherever chorax takes a filter it takes any of these, and the classes below combine with
`&`, `|` and `~`:

| filter | keeps |
|---|---|
| a type, or a tuple of types | instances of it |
| a `str` | what carries that tag: a written leaf of a delta, or an object's `tag` |
| a function of one argument | where `fn(x)` is true, as in `eqx.filter` |
| a function of two arguments | where `fn(path, x)` is true |
| `True` or `...` | everything |
| `False` or `None` | nothing |
| a list or tuple of filters | what any of them keeps |
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import jax.tree_util as jtu

from ._text._places import Path, place
from ._text._show import short, shown
from ._tree._paths import walk


T = TypeVar("T")
if TYPE_CHECKING:
    _Types: TypeAlias = type | tuple[type, ...]
    _Key: TypeAlias = str | int
    _Tag: TypeAlias = str
    Filter: TypeAlias = (
        type
        | str
        | bool
        | EllipsisType
        | Callable[..., typing.Any]
        | list[typing.Any]
        | tuple[typing.Any, ...]
        | None
    )
    """What every parameter that takes a filter takes: see the table of filters.

    ```python
    >>> from chorax.filters import to_predicate
    >>> keep = to_predicate([int, lambda path, x: "bias" in path])
    >>> keep(("bias",), 0.5), keep(("weight",), 0.5)
    (True, False)

    ```
    """
else:
    # What is no filter gets an error of ours, whoever checks types.
    Filter = _Types = _Key = _Tag = typing.Any
_NO_TAGS: frozenset[str] = frozenset()
__all__ = [
    "All",
    "Any",
    "Everything",
    "Filter",
    "Not",
    "Nothing",
    "OfType",
    "PathContains",
    "Predicate",
    "WithTag",
    "to_filter_spec",
    "to_predicate",
]


def __dir__() -> list[str]:
    return __all__


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

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
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


@dataclasses.dataclass(frozen=True)
class OfType(Predicate):
    """Keeps the instances of a type, or of any of a tuple of types.

    ```python
    >>> from chorax.filters import OfType
    >>> OfType(int)(("n",), 3), OfType((int, str))(("n",), 0.5)
    (True, False)

    ```
    """

    type: _Types

    def __post_init__(self) -> None:
        kinds = self.type if isinstance(self.type, tuple) else (self.type,)
        if not all(_is_type(kind) for kind in kinds):
            raise TypeError(
                "`OfType` takes a type or a tuple of types, but got "
                f"{shown(self.type)}."
            )

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        try:
            return isinstance(x, self.type)
        except Exception as error:
            _note(error, self.type, path)
            raise


@dataclasses.dataclass(frozen=True)
class PathContains(Predicate):
    """Keeps what stands at or below a key: `key in path`.

    ```python
    >>> from chorax.filters import PathContains
    >>> PathContains("encoder")(("encoder", 0, "weight"), None)
    True

    ```
    """

    key: _Key

    def __post_init__(self) -> None:
        key = typing.cast(object, self.key)
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise TypeError(
                "`PathContains` takes one key of a path, a `str` or an `int`, but got "
                f"{shown(key)}."
            )

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        return self.key in path


@dataclasses.dataclass(frozen=True)
class WithTag(Predicate):
    """Keeps what carries a tag.

    A leaf that was written has the tags of its delta (`state_tag`); any object may have
    an attribute `tag`, a `str` or a collection of them.

    ```python
    >>> from chorax.filters import WithTag
    >>> WithTag("hidden")(("v",), None, frozenset({"hidden"}))
    True

    ```
    """

    tag: _Tag

    def __post_init__(self) -> None:
        tag = typing.cast(object, self.tag)
        if not isinstance(tag, str):
            raise TypeError(f"`WithTag` takes a `str`, but got {shown(tag)}.")

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        try:
            own = getattr(x, "tag", None)
        except Exception as error:
            _note(error, self.tag, path)
            raise
        if isinstance(own, str):
            return self.tag in tags or own == self.tag
        if isinstance(own, list | tuple | set | frozenset):
            return self.tag in tags or self.tag in typing.cast(Iterable[str], own)
        return self.tag in tags


class _Combined(Predicate):
    """Filters under one roof; equal where their parts are equal, in order."""

    filters: tuple["Predicate", ...]

    def __init__(self, *filters: Filter) -> None:
        self.filters = tuple(to_predicate(part) for part in filters)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.filters == other.filters

    def __hash__(self) -> int:
        return hash((type(self), self.filters))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.filters))})"


class Any(_Combined):
    """Keeps what at least one of its filters keeps; `Any()` keeps nothing.

    ```python
    >>> from chorax.filters import Any
    >>> Any(int, "hidden")(("n",), 3)
    True

    ```
    """

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        # Not by `any`, in whose generator a `StopIteration` would become another error.
        kept = False
        for part in self.filters:
            kept = kept or part(path, x, tags)
        return kept


class All(_Combined):
    """Keeps what every one of its filters keeps; `All()` keeps everything.

    ```python
    >>> from chorax.filters import All, PathContains
    >>> All(int, PathContains("n"))(("m",), 3)
    False

    ```
    """

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        kept = True
        for part in self.filters:
            kept = kept and part(path, x, tags)
        return kept


class Not(_Combined):
    """Keeps what its filter does not keep.

    ```python
    >>> from chorax.filters import Not
    >>> Not(int)(("n",), 3)
    False

    ```
    """

    def __init__(self, filter: Filter) -> None:
        super().__init__(filter)

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
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

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
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

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class _Function(Predicate):
    """A user's function of `(x)` or of `(path, x)`."""

    function: Callable[..., typing.Any]
    takes_path: bool

    def __call__(
        self, path: Path, x: typing.Any, tags: frozenset[str] = _NO_TAGS
    ) -> bool:
        try:
            kept = self.function(path, x) if self.takes_path else self.function(x)
            return bool(kept)
        except Exception as error:
            _note(error, self.function, path)
            raise


def to_predicate(filter: Filter) -> Predicate:
    """The predicate of `(path, x)` that a filter stands for.

    **Arguments:**

    - `filter`: any filter, see `chorax.filters`.

    **Returns:**

    A callable of `(path, x)` that returns a `bool`, and that combines with `&`, `|` and
    `~`. `path` is a tuple of `str` and `int` keys.

    **Raises:** `TypeError` for anything that is not a filter.

    ```python
    >>> import equinox as eqx
    >>> from chorax.filters import PathContains, to_predicate
    >>> keep = to_predicate(eqx.is_inexact_array) & ~PathContains("bias")
    >>> keep(("layers", 0, "bias"), None)
    False

    ```
    """
    if isinstance(filter, Predicate):
        return filter
    match filter:
        case str():
            return WithTag(filter)
        case None | False:
            return Nothing()
        case EllipsisType() | True:
            return Everything()
        case list() | tuple():
            return Any(*filter)
        case _ if _is_type(filter):
            return OfType(typing.cast(type, filter))
        case _ if callable(filter) and typing.get_origin(filter) is None:
            return _Function(filter, _takes_path(filter))
        case _:
            raise TypeError(_message(filter))


def to_filter_spec(tree: T, filter: Filter) -> T:
    """The leaves of a tree that a filter keeps, as a tree of `bool`.

    **Arguments:**

    - `tree`: any PyTree.
    - `filter`: any filter, see `chorax.filters`; it is asked about each leaf.

    **Returns:**

    `tree` with a `bool` for each leaf: what `eqx.partition` and `eqx.filter` take.

    **Raises:** `TypeError` for anything that is not a filter.

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> from chorax.filters import PathContains, to_filter_spec
    >>> linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    >>> spec = to_filter_spec(linear, PathContains("bias"))
    >>> spec.weight, spec.bias
    (False, True)

    ```
    """
    keeps = to_predicate(filter)
    kept = [keeps(path, leaf) for path, leaf, is_leaf in walk(tree) if is_leaf]
    return jtu.tree_unflatten(jtu.tree_structure(tree), kept)


def is_pure(predicate: Predicate) -> bool:
    """Whether it gives the same answer each time; what its user wrote may not."""
    if type(predicate) in (All, Any, Not):
        return all(map(is_pure, typing.cast(_Combined, predicate).filters))
    return type(predicate) in (OfType, PathContains, WithTag, Everything, Nothing)


def _note(error: Exception, filter: object, path: Path) -> None:
    error.add_note(f"Raised by the filter {short(filter)} at {place(path)}.")


def _is_type(x: object) -> bool:
    return isinstance(x, type) and typing.get_origin(x) is None


def _takes_path(function: Callable[..., typing.Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False  # Some built-ins have no signature; they are asked about `x`.
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    required = [
        p
        for p in signature.parameters.values()
        if p.kind in kinds and p.default is inspect.Parameter.empty
    ]
    if len(required) not in (1, 2):
        raise TypeError(_message(function))
    return len(required) == 2


def _message(filter: object) -> str:
    detail = ""
    if callable(filter) and typing.get_origin(filter) is None:
        detail = " whose required positional parameters are not one or two"
    return (
        f"Not a filter: {shown(filter)}{detail}. A filter "
        "is a type, a tag (`str`), a function of `(x)` or of `(path, x)`, a `bool`, "
        "`...`, `None`, or a list or tuple of filters."
    )
