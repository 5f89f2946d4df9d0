"""A loop over time in all lanes, which carries only what each step writes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu

from .._text._places import place
from .._text._show import short, shown
from .._text._typed import typed
from .._tree._paths import leaf_paths
from .._tree._same import is_same
from ._arguments import check_positive
from ._axes import resolve_axes
from ._lane_axes import LaneAxes
from ._members import (
    array_axes,
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


T = TypeVar("T")


@typed("fn", Callable, "a function `(model, x) -> (model, y)`")
def scan(
    fn: Callable[..., tuple[Any, Any]],
    batched: T,
    axes: Any,
    xs: Any,
    *,
    xs_in_axes: Any = 0,
    length: int | None = None,
    checkpoint: bool = False,
) -> tuple[T, Any]:
    """Runs a batched model over time, all lanes at once.

    The same as `jax.lax.scan` over `eqx.filter_vmap`, in which only the arrays that
    `fn` writes go around the loop. `fn` is traced once to find them; an array is
    written where `fn` returns another object than it was given. All other leaves,
    weights for example, are the same for all steps. Use it inside `jit`, as
    `jax.lax.scan`: outside, every call is traced and compiled anew.

    For one step see `chorax.lanes.vmap`; for a loop over lanes see `chorax.lanes.fold`.

    **Arguments:**

    - `fn`: a function `(model, x) -> (model, y)` for one lane and one step.
    - `batched`, `axes`: as in `unstack`; or an `Ensemble` and `None`, where `fn` gets a
        member.
    - `xs`: the input, a PyTree of arrays of shape `(time, lanes, ...)`, or
        `(time, ...)` where lanes share it; `None` if there is none. Each step gets
        non-array leaves as they are.
    - `xs_in_axes`: the lane axes of `xs`, not counting time: `0`, `None` if all lanes
        share it, or a tree as in `eqx.filter_vmap`.
    - `length`: the number of steps; `None` if `xs` has it.
    - `checkpoint`: whether gradients recompute each step (`jax.checkpoint`) rather than
        store what it computes.

    **Returns:**

    A pair of the batched model after the last step, with the same `axes`, and `ys`:
    what `fn` returned as `y`, its arrays of shape `(time, lanes, ...)`, its non-array
    leaves as they are.

    **Raises:** `ValueError` if `fn` writes a leaf without lanes or one that is not an
    array, or changes a shape, a dtype or the structure (from `None`, for example),
    naming the leaf; also if lengths or numbers of lanes differ. `TypeError` if `fn` is
    not callable or does not return a pair.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Sum(eqx.Module):
    ...     total: jnp.ndarray
    ...     def __call__(self, x):
    ...         new = chorax.replace(self, total=self.total + x)
    ...         return new, new.total
    >>> sums = Sum(jnp.zeros(3))
    >>> sums, ys = chorax.lanes.scan(lambda m, x: m(x), sums, 0, jnp.ones((5, 3)))
    >>> sums.total.tolist(), ys.shape
    ([5.0, 5.0, 5.0], (5, 3))

    ```
    """
    lanes, close = open_lanes(batched, axes)
    x_arrays, x_static = split(xs)
    x_axes = _x_axes(x_arrays, array_axes(xs_in_axes), lanes.size)
    steps = _count_steps(x_arrays, length)
    mapped = [i for i, axis in enumerate(lanes.axes) if axis is not None]
    arrays = [lanes.leaves[i] for i in mapped]
    written: list[int] = []
    y_static: Any = None

    def one_lane(arrays: list[Any], x: Any) -> tuple[list[Any], Any]:
        nonlocal y_static
        old = _filled(lanes.leaves, mapped, arrays)
        result = fn(lanes.rebuild(old), join(x, x_static))
        model, y = check_pair(result, "lanes.scan", "(model, y)")
        y_arrays, y_static = split(y)
        new = _written(model, old, lanes)
        written.extend(new)
        return list(new.values()), y_arrays

    def all_lanes(arrays: list[Any], x: Any) -> tuple[list[Any], Any]:
        in_axes = [lanes.axes[i] for i in mapped], x_axes
        over_lanes = jax.vmap(one_lane, in_axes, axis_size=lanes.size)
        new, y_arrays = over_lanes(arrays, x)
        pairs = zip(new, written, strict=True)
        return [jnp.moveaxis(x, 0, lanes.axes[i] or 0) for x, i in pairs], y_arrays

    trace = _traced(all_lanes, arrays, jtu.tree_map(one_of, x_arrays))
    places = [mapped.index(i) for i in written]

    def step(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
        return trace(_filled(arrays, places, carry), x)

    if checkpoint:
        step = recomputed(step)
    start = [arrays[i] for i in places]
    last, ys = jax.lax.scan(step, start, x_arrays, length=steps)
    model = lanes.rebuild(_filled(lanes.leaves, written, last))
    return close(model), join(ys, y_static)


def _filled(leaves: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> Any:
    filled = list(leaves)
    for index, x in zip(places, new, strict=True):
        filled[index] = x
    return filled


def _traced(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """The function as one trace of it, which runs its Python no more."""
    out: Any = None

    def flat(*args: Any) -> list[Any]:
        nonlocal out
        leaves, out = jtu.tree_flatten(function(*args))
        return leaves

    run: Callable[..., Any] = jec.jaxpr_as_fun(jax.make_jaxpr(flat)(*args))
    return lambda *args: jtu.tree_unflatten(out, run(*jtu.tree_leaves(args)))


def _written(model: Any, old: list[Any], lanes: LaneAxes) -> dict[int, Any]:
    """The arrays that one lane writes, by index among the leaves."""
    leaves, structure = jtu.tree_flatten(model)
    check_returned(structure, lanes.structure, "lanes.scan", "the model")
    new: dict[int, Any] = {}
    for index, (before, after) in enumerate(zip(old, leaves, strict=True)):
        if is_same(before, after):
            continue
        where = f"The function given to `lanes.scan` wrote {_place(lanes, index)}"
        if not is_mappable(before):
            raise ValueError(
                f"{where}, which is {shown(before)}, and returned {shown(after)}. "
                "Only arrays go around the loop: make it an array with lanes."
            )
        if lanes.axes[index] is None:
            raise ValueError(
                f"{where}, which has no lanes by `axes`, so that there is no place for "
                "what each lane writes. Give it lanes, by `lanes.broadcast` for "
                "example, or return it as it was."
            )
        after = jnp.asarray(after) if is_number(after) else after
        if not eqx.is_array(after):
            raise ValueError(f"{where}, {shown(before)}, as {shown(after)}.")
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            raise ValueError(
                f"{where}, which is {short(before)} in one lane, as {short(after)}. "
                "What goes around the loop keeps its shape and dtype."
            )
        new[index] = after
    return new


def _place(lanes: LaneAxes, index: int) -> str:
    return place(leaf_paths(lanes.structure)[index])


def _x_axes(xs: Any, in_axes: Any, size: int) -> Any:
    """The lane axis of each array, not counting time."""
    leaves, structure = jtu.tree_flatten(xs)
    axes = resolve_axes(xs, in_axes, "xs_in_axes")
    for index, (x, axis) in enumerate(zip(leaves, axes, strict=True)):
        shape = x.shape[1:]
        is_there = axis is None or -len(shape) <= axis < len(shape)
        if axis is None or (is_there and shape[axis] == size):
            continue
        found = f"has {shape[axis]} lanes" if is_there else "has no such axis"
        raise ValueError(
            f"`xs_in_axes` is {axis} at {place(leaf_paths(structure)[index])} of `xs`, "
            f"which must be {size} lanes long, but the array {found} after its axis of "
            f"time: its shape is {x.shape}. Use `None` there if all lanes share it."
        )
    return jtu.tree_unflatten(structure, axes)


def _count_steps(xs: Any, length: Any) -> int:
    """The number of steps, in which `length` and all arrays agree."""
    leaves, structure = jtu.tree_flatten(xs)
    counts: dict[str, Any] = {}
    if length is not None:
        counts["`length`"] = check_positive(length, "length", "the number of steps")
    for path, x in zip(leaf_paths(structure), leaves, strict=True):
        counts[f"{place(path)} of `xs`"] = x.shape[0] if x.shape else "no axis of time"
    if not counts:
        raise ValueError("`length` is missing: `xs` has no array that tells it.")
    (first, steps), *rest = counts.items()
    for name, count in [(first, steps), *rest]:
        if count != steps or isinstance(count, str):
            raise ValueError(
                f"`lanes.scan` needs one number of steps, but {first} has {steps} and "
                f"{name} has {count}."
            )
    return steps
