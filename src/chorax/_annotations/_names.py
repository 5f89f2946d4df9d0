"""What jaxtyping says of one array, and which names of dimensions that binds."""

import abc
import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jaxtyping
import numpy as np

# What jaxtyping has bound can't be asked or taken back by public means. Should this
# move, ask again about all that has fit, with each further value, in one context.
from jaxtyping._storage import get_shape_memo

from .._text._places import Path
from ._hints import is_array_hint


# What comes between an axis and the leaf of a tree that it speaks of.
_OF_LEAF = "_of_leaf_"


class Narrowed(abc.ABC):  # noqa: B024
    """What a lane sees as an array of JAX of another dtype: NumPy's scalars, and arrays
    made by `narrowed`. JAX's dtype will do for it as well as its own."""


class _NarrowedArray(np.ndarray[Any, Any]):
    pass


Narrowed.register(np.generic)
Narrowed.register(_NarrowedArray)

_ARRAYS = jax.Array | np.ndarray
_NARROWER: dict[Any, Any] = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
_WIDER = {narrow: wide for wide, narrow in _NARROWER.items()}
# In a tree, for which jaxtyping asks typeguard, any smaller number will do.
_SMALLER: dict[Any, Any] = {float: (int,), complex: (int, float)}
# What a number becomes under `jax.jit`.
_NUMBERS: dict[Any, Any] = {
    bool: jaxtyping.Bool,
    int: jaxtyping.Integer,
    float: jaxtyping.Float,
    complex: jaxtyping.Complex,
}
_memos = cast("Callable[[], tuple[dict[str, Any], ...]]", get_shape_memo)


@dataclasses.dataclass(eq=False)
class Unresolved(Exception):  # noqa: N818
    """jaxtyping can't tell: an axis speaks of names that nothing has bound so far.

    `names` are those that have been bound on the way.
    """

    names: "Names"


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """What names stand for, each with the path of the value that has bound it.

    `memos` is the same as jaxtyping keeps it: for single axes, several and structures.
    """

    bound: Mapping[str, tuple[Any, Path]] = dataclasses.field(
        default_factory=dict[str, tuple[Any, Path]]
    )
    memos: tuple[Mapping[str, Any], ...] = ({}, {}, {})

    @property
    def count(self) -> int:
        """How many names are bound, those of single leaves of a tree too."""
        return sum(map(len, self.memos))

    def ask(
        self, value: Any, forms: Any, given: Mapping[str, Any], path: Path
    ) -> "Names | None":
        """The names with those that a value binds; `None` if it is not an instance.

        `given` is what an axis of the form `{self.size}` may speak of.
        """
        with cast(Any, jaxtyping).jaxtyped("context"):
            for memo, known in zip(_memos(), (*self.memos, given), strict=True):
                memo.update(known)
            try:
                if not isinstance(value, forms):
                    return None
            except Exception as error:
                raise Unresolved(self) from error
            single, several, structures, _ = _memos()
        bound = dict(self.bound)
        shapes = {name: shape for name, (_, shape) in several.items()}
        for name, size in {**shapes, **single, **structures}.items():
            if _OF_LEAF not in name:
                bound.setdefault(name, (size, path))
        return Names(bound, (single, several, structures))


def narrowed(dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of NumPy that JAX holds in another dtype."""
    return np.broadcast_to(np.zeros((), dtype), shape).view(_NarrowedArray)


@functools.lru_cache(maxsize=1024)
def of_any_kind(
    form: Any, leaf: str | None = None, is_loose: bool = False
) -> tuple[Any, ...]:
    """What to ask `isinstance` about instead of a hint: a lane does not tell arrays of
    NumPy from those of JAX, nor a number from what it becomes under `jax.jit`.

    `leaf` names the leaf of a tree that an axis of the form `?n` speaks of; it is empty
    in a tree without a name. `is_loose` lets arrays of any dtype and shape pass.
    """
    if form in (jax.Array, np.ndarray):
        return jax.Array, np.ndarray, Narrowed
    if form in _NUMBERS:
        smaller = () if leaf is None else _SMALLER.get(form, ())
        arrays = _NUMBERS[form][_ARRAYS | Narrowed, ""]
        return form, *smaller, *typing.get_args(arrays)
    if not is_array_hint(form):
        return (form,)
    kind, own, axes = form.array_type, form.dtypes, form.dim_str
    if is_loose:
        own, axes = cast(Any, jaxtyping).Shaped.dtypes, "..."
    if leaf:
        axes = re.sub(r"\?([#*]*)(\w+)", rf"\1\2{_OF_LEAF}{leaf}", axes)
    dtypes = {kind: own}
    if isinstance(kind, type) and issubclass(kind, _ARRAYS):
        of_jax = _and(_NARROWER, own) if issubclass(kind, np.ndarray) else own
        dtypes = {jax.Array: of_jax, np.ndarray: own, Narrowed: _and(_WIDER, of_jax)}
    return tuple(_dtype(names)[each, axes] for each, names in dtypes.items())


def _and(others: dict[Any, Any], names: Any) -> Any:
    if not isinstance(names, tuple):
        return names  # Any dtype.
    every = cast("tuple[Any, ...]", names)
    return (*every, *(others.get(name, name) for name in every))


def _dtype(names: Any) -> Any:
    return type("Dtype", (jaxtyping.AbstractDtype,), {"dtypes": names})
