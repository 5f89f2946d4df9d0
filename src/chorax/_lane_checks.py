"""Whether models can be lanes of one another."""

import functools
from types import FunctionType
from typing import Any, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._paths import first_difference, place
from ._show import named, short


def check_structures(
    left: jtu.PyTreeDef, right: jtu.PyTreeDef, left_name: str, right_name: str
) -> None:
    """Raises unless two structures are equal, for the first path that differs."""
    if left == right:
        return
    path, a, b = first_difference(left, right) or ((), "one", "another")
    raise ValueError(
        f"Lanes are models of one structure, but {left_name} and {right_name} differ "
        f"at {place(path)}: {left_name}: {a}; {right_name}: {b}."
    )


def check_alike(one: Any, other: Any, places: str, axis: int | None = None) -> None:
    """Raises unless two arrays have the same dtype, and the same shape but for an
    axis."""
    shapes: list[Any] = []
    for x in (one, other):
        if not eqx.is_array(x):
            raise ValueError(
                f"{places} differ: one is no array, but {named(x)}, {short(x)}."
            )
        shape = list(x.shape)
        if axis is not None and axis < len(shape):
            shape[axis] = None
        dtype = jax.dtypes.canonicalize_dtype(x.dtype, allow_extended_dtype=True)
        shapes.append((shape, dtype))
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{places} differ: {one.dtype}{list(one.shape)} against "
            f"{other.dtype}{list(other.shape)}."
        )


def check_same(one: Any, other: Any, places: str) -> None:
    """Raises unless two shared leaves are equal, as far as it can be told."""
    if one is other:
        return
    if eqx.is_array(one) and eqx.is_array(other):
        check_alike(one, other, places)
        if any(isinstance(x, jax.core.Tracer) for x in (one, other)):
            return
        if not _equal_arrays(one, other):
            raise ValueError(
                f"{places} have other values, but no lane axis: one of them would be "
                "lost. Give the leaf a lane axis, or make it the same in all."
            )
        return
    if type(one) is not type(other) or eqx.is_array(one) or not _equal(one, other):
        raise ValueError(
            f"{places} differ: {short(one)} against {short(other)}. What is no array "
            "is shared by all lanes; make it an array to have one a lane."
        )


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if eqx.is_array(one) or eqx.is_array(other):
        is_traced = any(isinstance(x, jax.core.Tracer) for x in (one, other))
        return type(one) is type(other) and not is_traced and _equal_arrays(one, other)
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        # A constructor may make its functions anew for each model.
        return one.__code__ is other.__code__ and _equal_parts(
            _bound(one), _bound(other)
        )
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        pair = [(x.func, x.args, x.keywords) for x in cast(list[Any], [one, other])]
        return _equal_parts(*pair)
    try:
        return bool(one == other) or bool(one != one and other != other)
    except Exception:
        return False  # Its author's comparison can't tell.


def _bound(function: FunctionType) -> Any:
    """What else than its code a function goes by."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return cells, function.__defaults__, function.__kwdefaults__


def _equal_parts(one: Any, other: Any) -> bool:
    leaves, structure = jtu.tree_flatten(one)
    others, other_structure = jtu.tree_flatten(other)
    return structure == other_structure and all(map(_equal, leaves, others))


def _equal_arrays(one: Any, other: Any) -> bool:
    def plain(x: Any) -> bytes:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    same = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same and plain(one) == plain(other)
