"""Batched models with the lane axis of each leaf, and their lanes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.sharding
import jax.tree_util as jtu
import numpy as np

from .._text._places import place
from .._text._show import is_array_like
from .._tree._holder import AxesHolder, LaneHolder
from .._tree._paths import leaf_paths
from ._arrays import ask, compute
from ._axes import Axes, check_leaf_lengths, plain_axes, resolve_axes
from ._index import count_of, read_index


@dataclasses.dataclass(frozen=True, eq=False)
class LaneAxes:
    """A flattened batched model; axes are not negative."""

    leaves: list[Any]
    structure: jtu.PyTreeDef
    axes: Axes
    size: int

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The model with other leaves."""
        return jtu.tree_unflatten(self.structure, leaves)


def lane_axes(batched: Any, axes: Any) -> LaneAxes:
    """Flattens a batched model; raises if leaves have different numbers of lanes."""
    axis_size = axes.axis_size if isinstance(axes, AxesHolder) else None
    leaves, structure = jtu.tree_flatten(batched)

    def resolve(batched: Any) -> tuple[Axes, int | None]:
        found = resolve_axes(batched, plain_axes(axes), "axes")
        leaves = jtu.tree_leaves(batched)
        return found, agreed_count(leaves, structure, found, "axes")

    found, count = ask(resolve, batched)
    size = axis_size if count is None else count
    if size is None:
        raise ValueError(
            "No leaf has a lane axis: `axes` is `None` everywhere. Pass the "
            "`StateDelta` or the tree of axes that came with the batched model."
        )
    not_negative = tuple(
        None if axis is None else axis % x.ndim
        for x, axis in zip(leaves, found, strict=True)
    )
    return LaneAxes(leaves, structure, not_negative, size)


def ensemble_lanes(ensemble: LaneHolder) -> LaneAxes:
    """As `lane_axes`, for the model of an ensemble."""
    leaves, structure = jtu.tree_flatten(ensemble.model)
    known = dict(ensemble.mapped)
    # Where a transformation has replaced an array, there are no lanes.
    pairs = zip(leaf_paths(structure), leaves, strict=True)
    axes = tuple(known.get(path) if is_array_like(x) else None for path, x in pairs)
    count = ask(lambda leaves: agreed_count(leaves, structure, axes, "axes"), leaves)
    size = int(ensemble.size_when_made) if count is None else count
    return LaneAxes(leaves, structure, axes, size)


def named_lane_axes(batched: Any, axes: Any, name: str) -> LaneAxes:
    """As `lane_axes`; errors say which model they are about."""
    try:
        return lane_axes(batched, axes)
    except Exception as error:
        error.add_note(f"Raised by {name}.")
        raise


def take_lanes(lanes: LaneAxes, index: Any) -> tuple[Any, int | None]:
    """The lanes at an index, and how many; `None` for one lane, without a lane axis."""
    which = read_index(index, lanes.size)
    leaves = [
        x if axis is None else compute(_take, x, by=which, axis=axis, which=which)
        for x, axis in zip(lanes.leaves, lanes.axes, strict=True)
    ]
    return lanes.rebuild(leaves), count_of(which, lanes.size)


def _take(library: Any, x: Any, axis: int, which: Any) -> Any:
    if library is np:
        return x[(*[slice(None)] * axis, which)]
    return _take_by_jax(jnp.asarray(x), axis, which)


def _take_by_jax(x: jax.Array, axis: int, which: Any) -> jax.Array:
    front = [slice(None)] * axis
    layout = x.aval.sharding  # The explicit part, which belongs to the type.
    entries: list[Any] = [*layout.spec]
    if axis >= len(entries) or entries[axis] is None:
        return x[(*front, which)]
    # Lanes spread over devices are gathered, which JAX wants to be explicit.
    if isinstance(which, slice):
        which = np.arange(x.shape[axis])[which]
    entries[axis] = None
    is_traced = isinstance(x, jax.core.Tracer)
    mesh = layout.mesh if is_traced else cast(Any, x.sharding).mesh
    out = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*entries))
    rows = jnp.atleast_1d(jnp.asarray(which))
    taken = cast(Any, x.at[(*front, rows)]).get(out_sharding=out)
    return taken if np.ndim(which) else jnp.squeeze(taken, axis)


def agreed_count(
    leaves: Sequence[Any], structure: jtu.PyTreeDef, axes: Axes, name: str
) -> int | None:
    """The number of lanes that all mapped leaves have, `None` if there are no such
    leaves; raises if the numbers differ."""
    if all(axis is None for axis in axes):
        return None
    pairs = enumerate(zip(leaves, axes, strict=True))
    sizes = {
        index: int(x.shape[axis])
        for index, (x, axis) in pairs
        if axis is not None and eqx.is_array(x) and -x.ndim <= axis < x.ndim
    }
    first, size = next(iter(sizes.items()), (None, 1))
    try:
        check_leaf_lengths(leaves, structure, axes, size, name, is_given=False)
    except ValueError as error:
        if first is not None:
            error.add_note(f"{place(leaf_paths(structure)[first])} has {size} lanes.")
        raise
    return size
