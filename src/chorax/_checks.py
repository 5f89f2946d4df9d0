"""Checks of the arguments of collective calls, made before anything else is done."""

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._kind import Lanes
from ._show import short, shown
from ._spread import check_sharding
from .filters import Predicate, to_predicate


IfNotExist: TypeAlias = Literal["raise", "pass", "none", "warn"]


def check_function(fn_name: Any) -> str | Callable[..., Any]:
    """What to call on nodes: a method's name, or a function."""
    if not isinstance(fn_name, str) and not callable(fn_name):
        raise TypeError(
            "`fn_name` must be the name of a method or a callable `(node, *args, "
            f"**kwargs) -> node`, but got {shown(fn_name)}."
        )
    return fn_name


def check_kwargs(kwargs: Any) -> dict[str, Any]:
    """The keyword arguments as a dictionary."""
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise TypeError(
            f"`kwargs` must be a mapping or `None`, but got {shown(kwargs)}."
        )
    given = cast(Mapping[Any, Any], kwargs)
    names = [name for name in given if not isinstance(name, str)]
    if names:
        raise TypeError(f"`kwargs` must have `str` keys, but has {short(names)}.")
    return dict(given)


def check_mode(fn_if_not_exist: Any) -> IfNotExist:
    """What to do about nodes without the method."""
    modes = get_args(IfNotExist)
    if not isinstance(fn_if_not_exist, str) or fn_if_not_exist not in modes:
        raise ValueError(
            f"`fn_if_not_exist` must be one of {', '.join(map(repr, modes))}, but got "
            f"{short(fn_if_not_exist)}."
        )
    return cast(IfNotExist, fn_if_not_exist)


def check_filter(filter: Any, name: str) -> Predicate:
    """A filter as a predicate; the error says which parameter it was for."""
    try:
        return to_predicate(filter)
    except TypeError as error:
        error.add_note(f"Given as `{name}`.")
        raise


def check_tag(state_tag: Any) -> str | None:
    """The tag of written leaves."""
    if state_tag is not None and not isinstance(state_tag, str):
        raise TypeError(
            f"`state_tag` must be a `str` or `None`, but got {shown(state_tag)}."
        )
    return state_tag


def check_lanes(
    axis_size: Any,
    axis_name: Any = None,
    spmd_axis_name: Any = None,
    chunk_size: Any = None,
    sharding: Any = None,
) -> Lanes:
    """The lanes that a batched call asks for."""
    size = _positive(axis_size, "axis_size", "the number of lanes")
    _check_name(axis_name, "axis_name")
    _check_name(spmd_axis_name, "spmd_axis_name")
    if chunk_size is not None:
        if axis_name is not None:
            raise ValueError(
                "`chunk_size` and `axis_name` do not go together: lanes of different "
                "chunks can't meet. Drop one of them."
            )
        chunk_size = _positive(chunk_size, "chunk_size", "lanes at a time")
    where = None if sharding is None else check_sharding(sharding, size)
    named = axis_name is not None or spmd_axis_name is not None
    if where is not None and named and not where.is_auto:
        raise ValueError(
            "`sharding` on a mesh of explicit axes does not go together with "
            "`axis_name` or `spmd_axis_name`. Make the mesh with `axis_types` of "
            "`jax.sharding.AxisType.Auto`."
        )
    return Lanes(size, axis_name, spmd_axis_name, chunk_size, where)


def check_where(where: Any, size: int) -> jax.Array | None:
    """The mask of lanes, shape `(size,)`; `None` for all of them."""
    return None if where is None else check_mask(where, size, "where")


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


def check_flag(value: Any, name: str) -> bool:
    """A `bool`, and nothing that passes for one."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be `True` or `False`, but got {shown(value)}.")
    return value


def _check_name(name: Any, parameter: str) -> None:
    try:
        hash(name)
    except Exception:
        raise TypeError(
            f"`{parameter}` must be the name of an axis, as `jax.vmap` takes, which "
            f"can be hashed, but got {shown(name)}."
        ) from None


def _positive(value: Any, name: str, meaning: str) -> int:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value <= 0:
        got = "it is missing" if value is None else f"got {shown(value)}"
        raise ValueError(f"`{name}` must be a positive integer, {meaning}, but {got}.")
    return int(cast(int, value))
