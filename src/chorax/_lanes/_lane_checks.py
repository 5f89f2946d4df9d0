"""Whether models can become lanes of one batched model."""

import functools
from collections.abc import Sequence
from numbers import Number
from types import FunctionType
from typing import Any, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._text._places import Path, place
from .._text._show import is_array_like, named, short
from .._tree._holder import without_sizes
from .._tree._memo import content_of
from .._tree._paths import first_difference, leaf_paths, same_structure
from .._tree._same import is_same
from ._arrays import are_numpy
from ._axes import is_foreign, not_taken


def aligned(
    models: Sequence[Any], names: Sequence[str]
) -> tuple[jtu.PyTreeDef, list[tuple[Path, list[Any]]]]:
    """The structure of all models, and for each leaf its path and its value in every
    model; raises if structures differ."""
    flat = [jtu.tree_flatten(model) for model in models]
    structure = flat[0][1]
    for (_, other), name in zip(flat, names, strict=True):
        _check_structures(structure, other, names[0], name)
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    paths = leaf_paths(structure)
    return structure, list(zip(paths, map(list, columns), strict=True))


def check_column(
    path: Path,
    column: Sequence[Any],
    names: Sequence[str],
    is_shared: bool,
    axis: int | None = None,
) -> None:
    """Raises unless the values of a leaf can be shared by all lanes, or be joined along
    a new lane axis or along the `axis` that they have."""
    for name, other in zip(names[1:], column[1:], strict=True):
        places = f"{place(path)} of {names[0]} and {name}"
        if is_shared:
            check_same(column[0], other, places)
        else:
            check_alike(column[0], other, places, axis)


def check_alike(one: Any, other: Any, places: str, axis: int | None = None) -> None:
    """Raises unless two arrays have the same dtype and, except along `axis`, the same
    shape."""
    for x in (one, other):
        if not is_array_like(x):
            raise ValueError(
                f"{places} differ: one is not an array but {named(x)}, {short(x)}."
            )
    is_host = are_numpy([one, other])

    def form(x: Any) -> tuple[Any, Any]:
        shape = [None if i == axis else size for i, size in enumerate(x.shape)]
        dtype = x.dtype
        if not is_host:
            dtype = jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)
        return shape, dtype

    if form(one) != form(other):
        raise ValueError(
            f"{places} differ: {one.dtype}{list(one.shape)} against "
            f"{other.dtype}{list(other.shape)}."
        )


def check_mappable(x: Any, place_: str, cure: str) -> None:
    """Raises for an array that can't have a lane axis."""
    if is_foreign(x):
        raise ValueError(
            f"{place_} can't have a lane axis: {not_taken(x)}. Share it, with {cure}."
        )


def check_same(one: Any, other: Any, places: str) -> None:
    """Raises if two shared leaves are known to differ."""
    if one is other:
        return
    if is_array_like(one) and is_array_like(other):
        check_alike(one, other, places)
        if not any(map(_is_unknown, (one, other))) and not _equal_arrays(one, other):
            raise ValueError(
                f"{places} have different values, but no lane axis: one of them would "
                "be lost. Give the leaf a lane axis, or make it the same in all."
            )
    elif type(one) is not type(other) or not _equal(one, other):
        cure = "make it an array to have one per lane"
        if callable(one) or callable(other):
            cure = "give all models the same function, or use `chorax.lanes.groups`"
        raise ValueError(
            f"{places} differ: {short(one)} against {short(other)}. A leaf that is "
            f"not an array is shared by all lanes; {cure}."
        )


def _is_unknown(x: Any) -> bool:
    """Whether it is an array whose values are unknown."""
    return isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct)


def _equal(one: Any, other: Any) -> bool:
    if is_same(one, other):
        return True
    if eqx.is_array(one) or eqx.is_array(other):
        are_known = not any(map(_is_unknown, (one, other)))
        return type(one) is type(other) and are_known and _equal_arrays(one, other)
    if isinstance(one, _FUNCTIONS) and isinstance(other, _FUNCTIONS):
        return _equal_parts(_parts(one), _parts(other))
    try:
        # Numbers were compared more strictly above.
        return not isinstance(one, Number) and bool(one == other)
    except Exception:
        return False  # Its own comparison fails.


# A constructor may create these anew for each model.
_FUNCTIONS = (FunctionType, functools.partial)


def _parts(function: Any) -> Any:
    """What a function is compared by: its code, and what is bound to it."""
    if isinstance(function, functools.partial):
        bound = cast(Any, function)
        return bound.func, bound.args, bound.keywords
    cells = [content_of(cell) for cell in function.__closure__ or ()]
    return function.__code__, cells, function.__defaults__, function.__kwdefaults__


def _equal_parts(one: Any, other: Any) -> bool:
    leaves, structure = jtu.tree_flatten(one)
    others, other_structure = jtu.tree_flatten(other)
    are_same = same_structure(structure, other_structure)
    return are_same and all(map(_equal, leaves, others))


def _equal_arrays(one: Any, other: Any) -> bool:
    def plain(x: Any) -> bytes:
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    same = (one.shape, one.dtype) == (other.shape, other.dtype)
    if same and one.dtype == object:
        return _equal_parts(one.tolist(), other.tolist())
    return same and plain(one) == plain(other)


def _check_structures(
    left: jtu.PyTreeDef, right: jtu.PyTreeDef, left_name: str, right_name: str
) -> None:
    """Raises unless two structures are equal, for the first path that differs."""
    if not same_structure(left, right):
        # Ensembles have as many lanes as their leaves, whatever size they note.
        left, right = without_sizes(left), without_sizes(right)
    if same_structure(left, right):
        return
    path, a, b = first_difference(left, right) or ((), "one", "another")
    problem = f"{left_name}: {a}; {right_name}: {b}."
    if path[-1:] == ("marker",) and "<object>" in (a, b):
        problem = (
            "each `StateIndex` has a marker of its own. Create each model with "
            "`eqx.nn.make_with_state`, which makes them equal; or create one, and draw "
            "the others with `vmap_call_all_fns(model, reset_parameters, ...)`."
        )
    raise ValueError(
        f"Lanes are models of one structure, but {left_name} and {right_name} differ "
        f"at {place(path)}: {problem}"
    )
