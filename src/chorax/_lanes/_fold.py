"""A loop over lanes: one member after the other."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._text._places import place
from .._text._show import shown
from .._text._typed import typed
from .._tree._paths import leaf_paths
from .._tree._same import is_same
from ._axes import in_front
from ._members import (
    check_pair,
    check_returned,
    is_mappable,
    is_number,
    join,
    one_of,
    open_lanes,
    recomputed,
    split,
)


C = TypeVar("C")


@typed("fn", Callable, "a function `(member, carry) -> (carry, y)`")
def fold(
    fn: Callable[..., tuple[Any, Any]],
    batched: Any,
    axes: Any,
    carry: C,
    xs: Any = None,
    *,
    checkpoint: bool = False,
) -> tuple[C, Any]:
    """Goes through the lanes of a batched model, one after the other.

    The same as a Python loop over `unstack`, but compiled once however many lanes there
    are. With `stack` it is the depth of a network as a loop: the blocks are the lanes.
    Use it inside `jit`, as `jax.lax.scan`.

    For all lanes at once see `chorax.lanes.vmap`; for a loop over time see
    `chorax.lanes.scan`. The idea is that of `Stacked.fold` in haliax.

    **Arguments:**

    - `fn`: a function `(member, carry) -> (carry, y)`, or with `xs` a function
        `(member, carry, x) -> (carry, y)`.
    - `batched`, `axes`: as in `unstack`; or an `Ensemble` and `None`.
    - `carry`: what the first member gets, any PyTree. Arrays in it keep their shapes
        and dtypes. All else has to come back as it was, except that a number which
        comes back different is an array from the start, as in `jax.lax.scan`.
    - `xs`: a PyTree of arrays of shape `(lanes, ...)`, one entry for each member, or
        `None`. Each member gets non-array leaves as they are.
    - `checkpoint`: whether gradients recompute each member's step (`jax.checkpoint`)
        rather than store what it computes.

    **Returns:**

    A pair of what the last member returned as `carry`, and `ys`: what `fn` returned as
    `y`, its arrays of shape `(lanes, ...)`, its non-array leaves as they are.

    **Raises:** `ValueError` if a part of `carry` that is not an array changes, naming
    it, or if `xs` has another number of lanes; `TypeError` if an array in `carry`
    changes its shape or dtype, or if `fn` is not callable or does not return a pair.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> keys = jax.random.split(jax.random.key(0), 24)
    >>> blocks = [eqx.nn.Linear(4, 4, key=key) for key in keys]
    >>> def block(linear, x):
    ...     return x + jax.nn.gelu(linear(x)), None
    >>> x, _ = chorax.lanes.fold(block, *chorax.lanes.stack(blocks), jnp.ones(4))
    >>> x.shape
    (4,)

    ```
    """
    lanes, _ = open_lanes(batched, axes)
    mapped = [i for i, axis in enumerate(lanes.axes) if axis is not None]
    arrays = [in_front(lanes.leaves[i], lanes.axes[i]) for i in mapped]
    x_arrays, x_static = split(xs)
    _check_lanes(x_arrays, lanes.size)
    y_static: Any = None

    def call(carry: Any, lane: Any) -> tuple[Any, Any]:
        arrays, x = lane
        leaves = list(lanes.leaves)
        for index, array in zip(mapped, arrays, strict=True):
            leaves[index] = array
        given = () if xs is None else (join(x, x_static),)
        result = fn(lanes.rebuild(leaves), carry, *given)
        new, y = check_pair(result, "lanes.fold", "(carry, y)")
        structures = jtu.tree_structure(new), jtu.tree_structure(carry)
        check_returned(*structures, "lanes.fold", "`carry`")
        return new, y

    def step(arrays: Any, lane: Any) -> tuple[Any, Any]:
        nonlocal y_static
        new, y = call(join(arrays, static), lane)
        _check_carry(new, carry)
        y_arrays, y_static = split(y)
        return split(new, is_carried)[0], y_arrays

    carry = _with_arrays(carry, call, jtu.tree_map(one_of, (arrays, x_arrays)))
    is_carried = jtu.tree_map(is_mappable, carry)
    start, static = split(carry, is_carried)
    if checkpoint:
        step = recomputed(step)
    last, ys = jax.lax.scan(step, start, (arrays, x_arrays), length=lanes.size)
    return join(last, static), join(ys, y_static)


def _with_arrays(carry: Any, call: Callable[..., Any], lane: Any) -> Any:
    """The carry with arrays for numbers that come back different."""
    leaves, structure = jtu.tree_flatten(carry)

    def find_changed(lane: Any) -> set[int]:
        def find(lane: Any) -> None:
            new, _ = call(jtu.tree_unflatten(structure, leaves), lane)
            rows = enumerate(zip(leaves, jtu.tree_leaves(new), strict=True))
            changed.update(
                i for i, (x, y) in rows if is_number(x) and not is_same(x, y)
            )

        changed: set[int] = set()
        jax.eval_shape(find, lane)
        return changed

    # A number may change only because another one is an array.
    while any(map(is_number, leaves)) and (changed := find_changed(lane)):
        for index in changed:
            leaves[index] = jnp.asarray(leaves[index])
    return jtu.tree_unflatten(structure, leaves)


def _check_carry(new: Any, old: Any) -> None:
    leaves, structure = jtu.tree_flatten(old)
    rows = zip(leaf_paths(structure), leaves, jtu.tree_leaves(new), strict=True)
    for path, x, y in rows:
        is_array = is_mappable(y) or is_number(y)
        if not (is_array if is_mappable(x) else is_same(x, y)):
            raise ValueError(
                f"The function given to `lanes.fold` returned {shown(y)} at "
                f"{place(path)} of `carry`, where it was given {shown(x)}. Only arrays "
                "and numbers may change."
            )


def _check_lanes(xs: Any, size: int) -> None:
    leaves, structure = jtu.tree_flatten(xs)
    for path, x in zip(leaf_paths(structure), leaves, strict=True):
        if x.shape[:1] != (size,):
            raise ValueError(
                f"`xs` must have {size} lanes in front at {place(path)}, one for each "
                f"member, but its shape is {x.shape}."
            )
