"""Which lanes an index selects."""

import operator
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._text._show import shown
from ._arguments import as_array


def read_index(index: Any, size: int) -> Any:
    """An index into so many lanes as a slice, an integer or an array of integers."""
    if isinstance(index, slice):
        return _checked_slice(cast(Any, index))
    if isinstance(index, bool | np.bool_):
        raise TypeError("A lane's index must be an integer, but got a `bool`.")
    is_array = isinstance(index, jax.Array | np.ndarray)
    if hasattr(index, "__index__") and not is_array:
        return _in_range(operator.index(index), size)
    array = as_array(index)
    if array is None:
        raise TypeError(
            "`index` must be an integer, a slice, a mask or an array of indices, but "
            f"got {shown(index)}."
        )
    if array.size == 0 and not is_array:
        array = array.astype(np.int32)  # NumPy makes floats of an empty list.
    if array.ndim > 1:
        raise ValueError(
            f"`index` must have at most one axis, but its shape is {array.shape}."
        )
    if array.dtype == np.bool_:
        return _where_true(array, size)
    if not jnp.issubdtype(array.dtype, np.integer):
        got = array.dtype if is_array else shown(index)
        raise TypeError(f"`index` must consist of integers, but got {got}.")
    if not isinstance(index, jax.core.Tracer):
        for each in np.asarray(array).reshape(-1).tolist():
            _in_range(each, size)
    return array


def count_of(which: Any, size: int) -> int | None:
    """How many lanes such an index takes; `None` for one lane, without a lane axis."""
    if isinstance(which, slice):
        return len(range(*cast(Any, which).indices(size)))
    return np.shape(which)[0] if np.ndim(which) else None


def _checked_slice(index: Any) -> Any:
    for entry in (index.start, index.stop, index.step):
        try:
            operator.index(0 if entry is None else entry)
        except TypeError:
            raise TypeError(
                "A slice of lanes must have integers that are known while tracing, but "
                f"got {shown(entry)}. An array of indices may be traced."
            ) from None
    return index


def _where_true(mask: Any, size: int) -> Any:
    if mask.shape != (size,):
        raise ValueError(
            f"A mask of lanes must have the shape ({size},), but has {mask.shape}."
        )
    if isinstance(mask, jax.core.Tracer):
        raise ValueError(
            "How many lanes a traced mask keeps is not known while tracing. Choose "
            "lane by lane with `chorax.lanes.where`, or take "
            "`jnp.flatnonzero(mask, size=...)`."
        )
    return np.flatnonzero(np.asarray(mask))


def _in_range(index: int, size: int) -> int:
    if not -size <= index < size:
        raise IndexError(f"There are {size} lanes, so there is none at index {index}.")
    return index
