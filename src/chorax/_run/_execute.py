"""From a recipe and values to the leaves that the results are made of."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from .._lanes._axes import in_front
from .._lanes._spread import split_like
from .._plan._kind import ArraySpec, Lanes
from .._plan._recipe import Recipe
from .._plan._results import NewArray
from .._plan._select import Calls
from .._tree._keys import LaneKeys
from ._blocks import Blocks, make_blocks
from ._devices import compile_for_devices, lay_out, lay_out_leaves, run_on_devices
from ._runner import run_blocks


def execute(recipe: Recipe, calls: Calls) -> Sequence[Any]:
    """The pool that the leaves of the results come from."""
    leaves, keys, where = calls.tree.leaves, calls.keys, calls.request.where
    values = dict(enumerate([*leaves, *calls.arrays]))
    for name in recipe.moved:
        values[name] = in_front(values[name], recipe.axes[name])
    values.update(recipe.plan.known)
    blocks = recipe.run.value
    if blocks is None:
        blocks = recipe.run.value = _prepare(recipe, keys)
    if blocks.program is None:
        made = _make(recipe, blocks, values, keys, where, recipe.lanes)
    elif recipe.plan.known:
        # Without jit all lanes have run already.
        made = lay_out(recipe, _make(recipe, blocks, values, keys, where, recipe.lanes))
    else:
        made = run_on_devices(recipe, blocks.program, values, keys, where)
    return [*lay_out_leaves(recipe, leaves), *recipe.results.constants, *made]


def _prepare(recipe: Recipe, keys: LaneKeys | None) -> Blocks:
    lanes = recipe.lanes
    stacks = keys is None or keys.stacks
    if lanes is None or lanes.sharding is None:
        return make_blocks(recipe.plan, lanes, recipe.in_jit, stacks)
    # Many devices run one program, as a `jit` does.
    blocks = make_blocks(recipe.plan, lanes.on_device(), True, stacks)
    make = functools.partial(_make, recipe, blocks)
    return dataclasses.replace(blocks, program=compile_for_devices(recipe, make))


def _make(
    recipe: Recipe,
    blocks: Blocks,
    values: dict[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
    lanes: Lanes | None,
) -> list[Any]:
    """The arrays that a recipe makes, from values by name, their lanes in front."""
    run_blocks(blocks, values, keys)
    size = None if lanes is None else lanes.size
    return [_finished(x, recipe, values, where, size) for x in recipe.results.arrays]


def _finished(
    new: NewArray,
    recipe: Recipe,
    values: Mapping[int, Any],
    where: jax.Array | None,
    size: int | None,
) -> Any:
    x = values[new.name]
    if not new.has_lanes:
        return x
    spec = cast(ArraySpec, recipe.plan.specs[new.name])
    if not spec.has_lanes:
        x = jnp.broadcast_to(x, (size, *spec.struct.shape))
    if where is None or new.kept is None:
        return x
    return _choose(where, x, values[new.kept], recipe.lane_axis(new.kept) is None)


@functools.partial(jax.jit, static_argnums=3)
def _choose(where: jax.Array, new: jax.Array, old: Any, is_shared: bool) -> jax.Array:
    mask = jnp.expand_dims(where, tuple(range(1, new.ndim)))
    if is_shared:
        return jnp.where(split_like(new, mask, 0), new, jnp.expand_dims(old, 0))
    old = jnp.asarray(old)
    mask, new = (split_like(old, x, 0) for x in (mask, new))
    return jnp.where(mask, new, old)
