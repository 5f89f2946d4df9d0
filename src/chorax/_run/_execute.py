"""From a recipe and values to the leaves of the results, here or on many devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp

from .._lanes._axes import in_front
from .._lanes._spread import LaneSharding
from .._plan._kind import ArraySpec, Lanes
from .._plan._recipe import Recipe
from .._plan._results import Made
from .._plan._select import Calls
from .._tree._keys import LaneKeys
from ._blocks import Blocks, make_blocks
from ._runner import run_blocks


class Run(NamedTuple):
    """How a recipe runs: its blocks and, on many devices, the one program of them."""

    blocks: Blocks
    program: Callable[..., Any] | None


def execute(recipe: Recipe, calls: Calls) -> Sequence[Any]:
    """The pool that the leaves of the results come from."""
    values = dict(enumerate([*calls.tree.leaves, *calls.arrays]))
    for name in recipe.moved:
        values[name] = in_front(values[name], recipe.axes[name])
    values.update(recipe.plan.known)
    made = _run(recipe, values, calls.keys, calls.request.where)
    leaves = _own_leaves(recipe, calls.tree.leaves)
    return [*leaves, *recipe.results.constants, *made]


def _run(
    recipe: Recipe, values: dict[int, Any], keys: LaneKeys | None, where: Any
) -> Sequence[Any]:
    """The arrays that a recipe makes, from values by name, their lanes in front."""
    run = recipe.run.value
    if run is None:
        run = recipe.run.value = _prepare(recipe, keys)
    sharding = None if recipe.lanes is None else recipe.lanes.sharding
    if sharding is None or run.program is None:
        return _make(recipe, run.blocks, values, keys, where, recipe.lanes)
    if recipe.plan.known:
        # Without jit it has run already, in all lanes.
        made = _make(recipe, run.blocks, values, keys, where, recipe.lanes)
        pairs = zip(made, recipe.results.made, strict=True)
        return [sharding.lay(x, 0 if each.has_lanes else None) for x, each in pairs]
    if keys is not None:
        keys = _spread(keys, sharding)
    if where is not None:
        where = sharding.place(where, 0)
    read = {i: x for i, x in values.items() if i in recipe.reads}
    laid = {i: sharding.lay(x, _lane_axis(recipe, i)) for i, x in read.items()}
    return run.program(laid, keys, where)


def _prepare(recipe: Recipe, keys: LaneKeys | None) -> Run:
    lanes = recipe.lanes
    stacks = keys is None or keys.stacks
    if lanes is None or lanes.sharding is None:
        return Run(make_blocks(recipe.plan, lanes, recipe.in_jit, stacks), None)
    # Many devices run one program, as a `jit` does.
    blocks = make_blocks(recipe.plan, lanes.on_device(), True, stacks)
    return Run(blocks, _compile(recipe, blocks, lanes.sharding))


def _own_leaves(recipe: Recipe, leaves: Sequence[Any]) -> Sequence[Any]:
    """The target's leaves as they stand in the results: on the devices of a sharding,
    else the same objects."""
    sharding = None if recipe.lanes is None else recipe.lanes.sharding
    if sharding is None:
        return leaves
    kept = {*recipe.results.model[1]}

    def own(i: int, x: Any, axis: int | None) -> Any:
        is_array = isinstance(recipe.plan.specs[i], ArraySpec)
        return sharding.lay(x, axis) if is_array and i in kept else x

    return [own(i, x, recipe.axes[i]) for i, x in enumerate(leaves)]


def _spread(keys: LaneKeys, sharding: LaneSharding) -> LaneKeys:
    """The same keys, one for each lane, each where its lane lives."""
    if keys.is_split or keys.size is None:
        array = sharding.place(keys.key, 0)
    else:
        array = _split(sharding.replicate(keys.key), keys.size, sharding)
    return LaneKeys(array, keys.size, is_split=True)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split(key: jax.Array, size: int, sharding: LaneSharding) -> jax.Array:
    return sharding.place(jax.random.split(key, size), 0)


def _make(
    recipe: Recipe,
    blocks: Blocks,
    values: dict[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
    lanes: Lanes | None,
) -> list[Any]:
    run_blocks(blocks, values, keys)
    size = None if lanes is None else lanes.size
    return [
        _finished(each, recipe, values, where, size) for each in recipe.results.made
    ]


def _finished(
    made: Made,
    recipe: Recipe,
    values: Mapping[int, Any],
    where: jax.Array | None,
    size: int | None,
) -> Any:
    x = values[made.name]
    if not made.has_lanes:
        return x
    spec = cast(ArraySpec, recipe.plan.specs[made.name])
    if not spec.has_lanes:
        x = jnp.broadcast_to(x, (size, *spec.struct.shape))
    if where is None or made.kept is None:
        return x
    return _choose(where, x, values[made.kept], _lane_axis(recipe, made.kept) is None)


@functools.partial(jax.jit, static_argnums=3)
def _choose(where: jax.Array, new: jax.Array, old: Any, is_shared: bool) -> jax.Array:
    mask = jnp.expand_dims(where, tuple(range(1, new.ndim)))
    return jnp.where(mask, new, jnp.expand_dims(old, 0) if is_shared else old)


def _lane_axis(recipe: Recipe, name: int) -> int | None:
    spec = recipe.plan.specs[name]
    return 0 if isinstance(spec, ArraySpec) and spec.has_lanes else None


def _compile(
    recipe: Recipe, blocks: Blocks, sharding: LaneSharding
) -> Callable[..., Any]:
    """The program of arrays by name, keys and mask, in which every device runs what its
    own lanes ask for."""
    lanes = cast(Lanes, recipe.lanes)
    local = lanes.on_device()
    out_axes = [0 if made.has_lanes else None for made in recipe.results.made]

    def run(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> list[Any]:
        if keys is not None:
            keys = dataclasses.replace(keys, size=local.size)
        return _make(recipe, blocks, dict(read), keys, where, local)

    def run_as_one(*inputs: Any) -> list[Any]:
        pairs = zip(run(*inputs), out_axes, strict=True)
        return [sharding.place(x, axis) for x, axis in pairs]

    def run_apart(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> Any:
        own = sharding.spec(0)
        mapped = cast(Any, jax).shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(
                {i: sharding.spec(_lane_axis(recipe, i)) for i in read},
                own,
                own,
            ),
            out_specs=[sharding.spec(axis) for axis in out_axes],
            axis_names=set(sharding.names),
            # What is written once for all lanes comes out the same on all devices.
            check_vma=False,
        )
        return mapped(read, keys, where)

    return jax.jit(run_apart if lanes.is_apart else run_as_one)
