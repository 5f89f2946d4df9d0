"""The forms in which users write filters, read as predicates."""

import dataclasses
import inspect
import typing
from collections.abc import Callable
from types import EllipsisType
from typing import Any, TypeVar

import jax.tree_util as jtu

from .._text._places import Path
from .._text._show import shown
from .._tree._paths import walk
from ._predicates import (
    All,
    Any as AnyOf,
    Combined,
    Everything,
    Filter,
    Not,
    Nothing,
    Predicate,
    Tags,
)
from ._single import is_type, OfType, PathContains, Test, WithTag


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Function(Test):
    """A user's function of `(x)` or of `(path, x)`."""

    function: Callable[..., Any]
    takes_path: bool

    def _keeps(self, path: Path, x: object, tags: Tags) -> bool:
        return bool(self.function(path, x) if self.takes_path else self.function(x))


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
            return AnyOf(*filter)
        case _ if is_type(filter):
            return OfType(typing.cast(type, filter))
        case _ if _is_function(filter):
            function = typing.cast(Callable[..., Any], filter)
            return _Function(function, _takes_path(function))
        case _:
            raise _not_a_filter(filter)


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
    """Whether it always gives the same answer, which user code may not."""
    if type(predicate) in (All, AnyOf, Not):
        return all(map(is_pure, typing.cast(Combined, predicate).filters))
    return type(predicate) in (OfType, PathContains, WithTag, Everything, Nothing)


def _is_function(x: object) -> bool:
    """Whether it is meant to be called; `list[int]` is callable, but not meant so."""
    return callable(x) and typing.get_origin(x) is None


def _takes_path(function: Callable[..., Any]) -> bool:
    """Whether a function takes `(path, x)` and not `(x)`, by its required positional
    parameters; raises `TypeError` if it takes neither."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False  # Some built-ins have no signature; they take `x`.
    required = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    if len(required) not in (1, 2):
        raise _not_a_filter(function)
    return len(required) == 2


def _not_a_filter(x: object) -> TypeError:
    """The error for something that is not a filter."""
    detail = ""
    if _is_function(x):
        detail = " whose required positional parameters are not one or two"
    return TypeError(
        f"Not a filter: {shown(x)}{detail}. A filter is a type, a tag (`str`), a "
        "function of `(x)` or of `(path, x)`, a `bool`, `...`, `None`, or a list or "
        "tuple of filters."
    )
