"""Hints as a lane can be asked about them.

A lane sees every array as JAX's, a NumPy array too, and under `jax.jit` a Python number
as well. So a hint of one kind of array is asked about as one of either kind, and inside
of trees, where jaxtyping asks about each leaf itself, a number as a number or a scalar.
"""

import re
import typing
from typing import Any, cast

import jax
import jaxtyping
import numpy as np

from ._hints import is_array_hint, is_tree_hint, is_union


_HELD: dict[Any, str] = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
_SCALARS: dict[Any, Any] = {
    bool: jaxtyping.Bool,
    int: jaxtyping.Int,
    float: jaxtyping.Float,
    complex: jaxtyping.Complex,
}
_EITHER = jax.Array | np.ndarray


def widened(form: Any) -> tuple[Any, ...]:
    """What to ask `isinstance` about, so that JAX's and NumPy's arrays pass alike."""
    if is_array_hint(form):
        return _of_either(form)
    leaf = _widened_leaf(form.leaftype)
    tree = cast(Any, jaxtyping).PyTree
    return (tree[leaf] if form.structure is None else tree[leaf, form.structure],)


def names_of(form: Any) -> frozenset[str]:
    """The names that a hint may bind or speak of."""
    if is_array_hint(form):
        return frozenset(re.findall(r"[^\W\d]\w*", form.dim_str))
    if is_tree_hint(form):
        structure = frozenset((form.structure or "").split())
        return structure | names_of(form.leaftype)
    return frozenset[str]().union(*map(names_of, typing.get_args(form)))


def _widened_leaf(form: Any) -> Any:
    if form in _SCALARS:
        return typing.Union[form, _SCALARS[form][jax.Array, ""]]  # noqa: UP007
    if form in (jax.Array, np.ndarray):
        return _EITHER
    if is_array_hint(form) or is_tree_hint(form):
        return typing.Union[widened(form)]  # noqa: UP007
    parts = tuple(_widened_leaf(part) for part in typing.get_args(form))
    if is_union(form):
        return typing.Union[parts]  # noqa: UP007
    origin = typing.get_origin(form)
    return cast(Any, origin)[parts] if origin in (list, tuple, dict) else form


def _of_either(form: Any) -> tuple[Any, ...]:
    kind = form.array_type
    if not isinstance(kind, type) or not issubclass(kind, jax.Array | np.ndarray):
        return (form,)
    dtype = _dtype_of(form)
    hints = dtype[jax.Array, form.dim_str], dtype[np.ndarray, form.dim_str]
    dtypes: Any = form.dtypes
    if not issubclass(kind, np.ndarray) or not hasattr(dtypes, "index"):
        return hints
    # Under `jax.jit` a NumPy array comes as JAX holds it, with 32 bits, say.
    held = tuple(_HELD.get(name, name) for name in dtypes)
    return *hints, _named(dtype.__name__, held)[jax.Array, form.dim_str]


def _dtype_of(form: Any) -> Any:
    """The dtype of a hint; of one hint inside of another, that of both together."""
    if form.dtype.dtypes == form.dtypes:
        return form.dtype
    return _named(form.dtype.__name__, form.dtypes)


def _named(name: str, dtypes: Any) -> Any:
    return type(name, (jaxtyping.AbstractDtype,), {"dtypes": dtypes})
