"""Running on many devices: each makes and holds its own lanes.

The same program as on one device, under one `shard_map`, or under one `jit` where lanes
may meet.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax

from .._lanes._spread import LaneSharding
from .._plan._kind import ArraySpec, Lanes
from .._plan._recipe import Recipe
from .._tree._keys import LaneKeys


def compile_for_devices(
    recipe: Recipe, make: Callable[..., list[Any]]
) -> Callable[..., Any]:
    """The program of arrays by name, keys and mask, in which each device runs what its
    own lanes ask for; `make` also takes those lanes."""
    lanes, sharding = cast(Lanes, recipe.lanes), _sharding(recipe)
    local = lanes.on_device()
    out_axes = [0 if made.has_lanes else None for made in recipe.results.arrays]

    def run(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> list[Any]:
        if keys is not None:
            keys = dataclasses.replace(keys, size=local.size)
        return make(dict(read), keys, where, local)

    def run_spread(*inputs: Any) -> list[Any]:
        pairs = zip(run(*inputs), out_axes, strict=True)
        return [sharding.place(x, axis) for x, axis in pairs]

    def run_per_device(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> Any:
        own = sharding.spec(0)
        axes = {i: sharding.spec(recipe.lane_axis(i)) for i in read}
        mapped = cast(Any, jax).shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(axes, own, own),
            out_specs=[sharding.spec(axis) for axis in out_axes],
            axis_names=set(sharding.names),
            # What is written once for all lanes comes out the same on all devices.
            check_vma=False,
        )
        return mapped(read, keys, where)

    return jax.jit(run_per_device if lanes.runs_per_device else run_spread)


def run_on_devices(
    recipe: Recipe,
    program: Callable[..., Any],
    values: Mapping[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
) -> Sequence[Any]:
    """The arrays that a recipe makes, each on the devices of its lanes."""
    sharding = _sharding(recipe)
    if keys is not None:
        keys = _spread(keys, sharding)
    if where is not None:
        where = sharding.place(where, 0)
    read = {i: x for i, x in values.items() if i in recipe.reads}
    laid = {i: sharding.lay(x, recipe.lane_axis(i)) for i, x in read.items()}
    return program(laid, keys, where)


def lay_out(recipe: Recipe, made: Sequence[Any]) -> Sequence[Any]:
    """The arrays that a recipe has made, laid out on the devices of their lanes."""
    sharding = _sharding(recipe)
    pairs = zip(made, recipe.results.arrays, strict=True)
    return [sharding.lay(x, 0 if each.has_lanes else None) for x, each in pairs]


def lay_out_leaves(recipe: Recipe, leaves: Sequence[Any]) -> Sequence[Any]:
    """The target's leaves as they stand in the results: on the devices of a sharding,
    else the same objects."""
    if recipe.lanes is None or recipe.lanes.sharding is None:
        return leaves
    sharding = recipe.lanes.sharding
    kept = {*recipe.results.model[1]}

    def own(i: int, x: Any, axis: int | None) -> Any:
        is_array = isinstance(recipe.plan.specs[i], ArraySpec)
        return sharding.lay(x, axis) if is_array and i in kept else x

    return [own(i, x, recipe.axes[i]) for i, x in enumerate(leaves)]


def _sharding(recipe: Recipe) -> LaneSharding:
    assert recipe.lanes is not None
    assert recipe.lanes.sharding is not None
    return recipe.lanes.sharding


def _spread(keys: LaneKeys, sharding: LaneSharding) -> LaneKeys:
    """The same keys, one per lane, each on the device of its lane."""
    if keys.is_split or keys.size is None:
        array = sharding.place(keys.key, 0)
    else:
        array = _split(sharding.replicate(keys.key), keys.size, sharding)
    return LaneKeys(array, keys.size, is_split=True)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split(key: jax.Array, size: int, sharding: LaneSharding) -> jax.Array:
    return sharding.place(jax.random.split(key, size), 0)
