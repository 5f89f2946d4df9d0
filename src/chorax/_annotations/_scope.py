"""Asking jaxtyping about one array, and remembering which names that binds."""

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jaxtyping
import numpy as np

# jaxtyping has no public way to read or to restore what it has bound. Should this move,
# ask again about all values that fit so far, with each further one, in one context.
from jaxtyping._storage import get_shape_memo

from .._text._places import Path
from ._hints import is_array_hint


_memos = cast("Callable[[], tuple[dict[str, Any], ...]]", get_shape_memo)
# Marks the names of axes that have a size per leaf of a tree.
_OF_LEAF = "_of_leaf_"
# The dtypes that JAX has instead of NumPy's.
_NARROWER: dict[Any, Any] = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
# What a number becomes under `jax.jit`.
_NUMBERS: dict[Any, Any] = {
    bool: jaxtyping.Bool,
    int: jaxtyping.Integer,
    float: jaxtyping.Float,
    complex: jaxtyping.Complex,
}
# In a tree, for which jaxtyping asks typeguard, a number of a smaller type fits too.
_SMALLER: dict[Any, Any] = {float: (int,), complex: (int, float)}


class Unresolved(Exception):  # noqa: N818
    """jaxtyping can't tell: an axis uses a name that nothing has bound so far.

    `scope` has what was bound on the way.
    """

    def __init__(self, scope: "Scope") -> None:
        super().__init__()
        self.scope = scope


class Narrowed(np.ndarray[Any, Any]):
    """An array of NumPy that JAX holds in a narrower dtype."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """What the names in the annotations of one object stand for.

    `memos` is what jaxtyping knows: sizes of axes, shapes of variadic axes, structures
    of trees, and the variables that an axis such as `{self.size}` uses. `bound` has the
    value of each name and the path of the array that bound it. `around` has the
    identities of the object and of those that contain it. Where the scope `is_loose`,
    arrays fit whatever their dtype and shape.
    """

    memos: tuple[Mapping[str, Any], ...]
    around: tuple[int, ...]
    bound: Mapping[str, tuple[Any, Path]]
    is_loose: bool = False

    @property
    def count(self) -> int:
        """How many names are bound, those of single leaves of a tree included."""
        return sum(map(len, self.memos))

    def bind(self, value: Any, hints: tuple[Any, ...], path: Path) -> "Scope | None":
        """The scope with the names that a value binds; `None` if it fits no hint."""
        with cast(Any, jaxtyping).jaxtyped("context"):
            for memo, known in zip(_memos(), self.memos, strict=True):
                memo.update(known)
            try:
                if not is_instance(value, hints):
                    return None
            except Exception as error:
                raise Unresolved(self) from error
            memos = _memos()
        sizes, variadic, structures, _ = memos
        shapes = {name: shape for name, (_, shape) in variadic.items()}
        bound = dict(self.bound)
        for name, x in {**shapes, **sizes, **structures}.items():
            if _OF_LEAF not in name:
                bound.setdefault(name, (x, path))
        return dataclasses.replace(self, memos=memos, bound=bound)


def is_instance(value: Any, hints: tuple[Any, ...]) -> bool:
    """Whether a value fits one of the hints, as it is or as JAX holds it."""
    if isinstance(value, hints):
        return True
    if not isinstance(value, Narrowed | np.generic):
        return False
    dtype = cast(Any, value).dtype
    dtypes = dtype, jax.dtypes.canonicalize_dtype(dtype)
    return any(isinstance(zeros(x, value.shape), hints) for x in dtypes)


def zeros(dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of NumPy that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


@functools.lru_cache(maxsize=1024)
def lane_hints(
    hint: Any, leaf: str | None = None, is_loose: bool = False
) -> tuple[Any, ...]:
    """The hints to ask about instead of one: a lane does not tell arrays of NumPy from
    those of JAX, nor a number from the array that it is under `jax.jit`.

    `leaf` is a name for the leaf of a tree, for axes of the form `?n`; it is empty in a
    tree without a name. `is_loose` is as in `Scope`.
    """
    if hint in (jax.Array, np.ndarray):
        return jax.Array, np.ndarray
    if hint in _NUMBERS:
        smaller = () if leaf is None else _SMALLER.get(hint, ())
        arrays = _NUMBERS[hint][jax.Array | np.ndarray, ""]
        return hint, *smaller, *typing.get_args(arrays)
    if not is_array_hint(hint):
        return (hint,)
    kind, dtypes, axes = hint.array_type, hint.dtypes, hint.dim_str
    if is_loose:
        dtypes, axes = cast(Any, jaxtyping).Shaped.dtypes, "..."
    if leaf:
        axes = re.sub(r"\?([#*]*)(\w+)", rf"\1\2{_OF_LEAF}{leaf}", axes)
    if not isinstance(kind, type) or not issubclass(kind, jax.Array | np.ndarray):
        return (_with_dtypes(dtypes)[kind, axes],)
    of_jax = dtypes
    # They are no tuple where any dtype fits.
    if issubclass(kind, np.ndarray) and isinstance(dtypes, tuple):
        names = cast("tuple[Any, ...]", dtypes)
        of_jax = (*names, *(_NARROWER.get(name, name) for name in names))
    return _with_dtypes(of_jax)[jax.Array, axes], _with_dtypes(dtypes)[np.ndarray, axes]


def _with_dtypes(dtypes: Any) -> Any:
    return type("Dtype", (jaxtyping.AbstractDtype,), {"dtypes": dtypes})
