"""Masks of lanes, and what else users give as an array."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ._show import shown


def check_mask(mask: Any, size: int, name: str) -> jax.Array:
    """A mask of lanes, shape `(size,)`."""
    expected = f"`{name}` must be a boolean array of shape ({size},), one entry a lane"
    array = as_array(mask)
    if array is None:
        raise TypeError(f"{expected}, but got {shown(mask)}.")
    if array.shape != (size,):
        raise ValueError(f"{expected}, but its shape is {array.shape}.")
    if array.dtype != np.bool_:
        raise TypeError(f"{expected}, but its dtype is {array.dtype}.")
    return jnp.asarray(array)


def as_array(x: Any) -> Any:
    """An array, or a list or tuple of numbers as one; `None` for all else."""
    if isinstance(x, jax.Array | np.ndarray):
        return cast(Any, x)
    if not isinstance(x, list | tuple):
        return None
    items = cast("list[Any]", x)
    try:
        is_jax = any(isinstance(item, jax.Array) for item in items)
        return jnp.asarray(items) if is_jax else np.asarray(items)
    except Exception:  # JAX shows what it can't take, by a `repr` that may raise.
        return None
