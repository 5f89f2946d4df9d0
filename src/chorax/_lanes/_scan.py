"""A loop over time in all lanes, which carries only what each step writes."""

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias, TypeVar

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
if TYPE_CHECKING:
    _Length: TypeAlias = SupportsIndex | None
else:
    # What is not an integer gets an error of ours, whoever checks types.
    _Length = Any


@typed("fn", Callable, "a function `(model, x) -> (model, y)`")
def scan(
    fn: Callable[..., tuple[Any, Any]],
    batched: T,
    axes: Any,
    xs: Any,
    *,
    xs_in_axes: Any = 0,
    length: _Length = None,
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
    x_tree, x_static = split(xs)
    x_axes = _x_axes(x_tree, array_axes(xs_in_axes), lanes.size)
    count = _count_steps(x_tree, length)
    x_arrays, x_structure = jtu.tree_flatten(x_tree)
    arrays, static = split(lanes.leaves)
    y_static: Any = None
    changed: list[int] = []

    def one_lane(arrays: list[Any], x: Any) -> tuple[list[Any], Any]:
        nonlocal y_static
        old = join(arrays, static)
        x = join(jtu.tree_unflatten(x_structure, x), x_static)
        result = fn(lanes.rebuild(old), x)
        model, y = check_pair(result, "lanes.scan", "(model, y)")
        y_arrays, y_static = split(y)
        new = _changed(model, old, lanes)
        changed.extend(new)
        return list(new.values()), y_arrays

    pairs = zip(arrays, lanes.axes, strict=True)
    lane = [x if x is None else one_of(x, axis) for x, axis in pairs]
    pairs = zip(x_arrays, x_axes, strict=True)
    run, origins = _traced(one_lane, lane, [one_of(one_of(x), a) for x, a in pairs])
    inputs = [index for index, x in enumerate(arrays) if x is not None]
    # A leaf that a function in a `jit` of its own returned as it was is not written.
    rows = zip(changed, origins[: len(changed)], strict=True)
    written = [i for i, origin in rows if origin != inputs.index(i)]
    _check_lanes(written, lanes)
    which = [changed.index(i) for i in written]
    axes = [lanes.axes[i] for i in written]

    def write(arrays: list[Any], x: Any) -> tuple[list[Any], Any]:
        new, y = run(arrays, x)
        return [new[i] for i in which], y

    def step(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
        in_axes = list(lanes.axes), x_axes
        over_lanes = jax.vmap(write, in_axes, (axes, 0), axis_size=lanes.size)
        return over_lanes(_filled(arrays, written, carry), x)

    step = recomputed(step) if checkpoint else step
    start = [arrays[i] for i in written]
    last, ys = jax.lax.scan(step, start, x_arrays, length=count)
    model = lanes.rebuild(_filled(lanes.leaves, written, last))
    return close(model), join(ys, y_static)


def _filled(leaves: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> Any:
    filled = list(leaves)
    for index, x in zip(places, new, strict=True):
        filled[index] = x
    return filled


def _traced(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[..., Any], list[int | None]]:
    """The function as one trace of it, which runs its Python no more; and for each of
    its outputs which input that is, if any."""
    out: Any = None

    def flat(*args: Any) -> list[Any]:
        nonlocal out
        leaves, out = jtu.tree_flatten(function(*args))
        return leaves

    closed: Any = jax.make_jaxpr(flat)(*args)

    def run(*args: Any) -> Any:
        return jtu.tree_unflatten(out, jec.jaxpr_as_fun(closed)(*jtu.tree_leaves(args)))

    return run, _forwarded(closed.jaxpr)


def _forwarded(jaxpr: Any) -> list[int | None]:
    """Which input each output is, through `jit` and `jax.checkpoint` too."""
    origins: dict[int, int] = {id(var): i for i, var in enumerate(jaxpr.invars)}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in ("jit", "pjit", "checkpoint", "remat2"):
            continue
        inner = eqn.params["jaxpr"]
        found = _forwarded(getattr(inner, "jaxpr", inner))
        for var, index in zip(eqn.outvars, found, strict=True):
            if index is not None and id(eqn.invars[index]) in origins:
                origins[id(var)] = origins[id(eqn.invars[index])]
    return [origins.get(id(var)) for var in jaxpr.outvars]


def _changed(model: Any, old: list[Any], lanes: LaneAxes) -> dict[int, Any]:
    """The arrays that are other objects in one lane, by index among the leaves."""
    leaves, structure = jtu.tree_flatten(model)
    check_returned(structure, lanes.structure, "lanes.scan", "the model")
    new: dict[int, Any] = {}
    for index, (before, after) in enumerate(zip(old, leaves, strict=True)):
        if is_same(before, after):
            continue
        where = f"The function given to `lanes.scan` wrote {_place(lanes, index)}"
        if not is_mappable(before):
            raise ValueError(
                f"{where}, which was {shown(before)}, as {shown(after)}. Only arrays "
                "go around the loop: make it an array with lanes."
            )
        array = jnp.asarray(after) if is_number(after) else after
        kept = is_mappable(array) and array.shape == before.shape
        if not kept or array.dtype != before.dtype:
            raise ValueError(
                f"{where}, which in one lane was {short(before)}, as {short(after)}. "
                "What goes around the loop keeps its shape and dtype."
            )
        new[index] = array
    return new


def _check_lanes(written: Sequence[int], lanes: LaneAxes) -> None:
    for index in written:
        if lanes.axes[index] is None:
            raise ValueError(
                f"The function given to `lanes.scan` wrote {_place(lanes, index)}, "
                "which has no lane axis in `axes`, so the lanes can't each keep their "
                "own value. Give it one, for example by `lanes.broadcast`, or return "
                "it as it was."
            )


def _place(lanes: LaneAxes, index: int) -> str:
    return place(leaf_paths(lanes.structure)[index])


def _x_axes(xs: Any, in_axes: Any, size: int) -> list[int | None]:
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
    return [
        None if a is None else a % (x.ndim - 1)
        for a, x in zip(axes, leaves, strict=True)
    ]


def _count_steps(xs: Any, length: Any) -> int:
    """The number of steps, in which `length` and all arrays agree."""
    leaves, structure = jtu.tree_flatten(xs)
    counts: dict[str, Any] = {}
    if length is not None:
        meaning = "the number of steps"
        counts["`length`"] = check_positive(length, "length", meaning, least=0)
    for path, x in zip(leaf_paths(structure), leaves, strict=True):
        counts[f"{place(path)} of `xs`"] = x.shape[0] if x.shape else "no axis of time"
    if not counts:
        raise ValueError("`length` is missing, and `xs` has no array to read it from.")
    (first, steps), *rest = counts.items()
    for name, count in [(first, steps), *rest]:
        if count != steps or isinstance(count, str):
            raise ValueError(
                f"The number of steps of `lanes.scan` differs: {first} has {steps}, "
                f"and {name} has {count}."
            )
    return steps
