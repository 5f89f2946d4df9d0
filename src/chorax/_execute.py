"""From a recipe and values to results, here or on many devices."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, NamedTuple

import jax

from ._finish import Finish
from ._keys import LaneKeys
from ._kind import ArraySpec, Lanes
from ._recipe import Recipe
from ._run import run_script
from ._spread import LaneSharding


class Results(NamedTuple):
    """The leaves of the new model, and the values of each node's `aux`."""

    leaves: list[Any]
    aux: list[list[Any]]


def execute(
    recipe: Recipe,
    values: dict[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
) -> Results:
    """Runs a recipe; adds to `values`, which go by name."""
    lanes = recipe.lanes
    if lanes is None or lanes.sharding is None:
        return _here(recipe, values, keys, where)
    if recipe.plan.known:
        # Without jit it has run already, in all lanes.
        return _placed(recipe, _here(recipe, values, keys, where), lanes.sharding)
    return _on_devices(recipe, values, keys, where, lanes.sharding)


def _here(
    recipe: Recipe,
    values: dict[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
) -> Results:
    run_script(recipe.script, values, keys)
    size = None if recipe.lanes is None else recipe.lanes.size
    finish = Finish(recipe.plan, values, recipe.axes, size, where)
    pairs = zip(recipe.placed, recipe.ready, strict=True)
    leaves = [
        finish.leaf(leaf) if name is None else values[name] for leaf, name in pairs
    ]
    return Results(leaves, _aux(recipe, finish))


def _aux(recipe: Recipe, finish: Finish) -> list[list[Any]]:
    return [list(map(finish.with_lanes, each.names)) for each in recipe.plan.aux]


def _placed(recipe: Recipe, results: Results, sharding: LaneSharding) -> Results:
    """Results that were made here, laid out."""
    rows = zip(recipe.placed, results.leaves, strict=True)
    leaves = [
        _lay(x, 0 if leaf.has_lanes else None, sharding)
        if leaf.written
        else _lay(x, _axis(recipe, cast(int, leaf.original)), sharding)
        for leaf, x in rows
    ]
    aux = [
        [
            _lay(x, 0, sharding) if _is_array(recipe, name) else x
            for name, x in zip(each.names, made, strict=True)
        ]
        for each, made in zip(recipe.plan.aux, results.aux, strict=True)
    ]
    return Results(leaves, aux)


def _on_devices(
    recipe: Recipe,
    values: Mapping[int, Any],
    keys: LaneKeys | None,
    where: jax.Array | None,
    sharding: LaneSharding,
) -> Results:
    """Runs on every device what its own lanes ask for, all in one program."""
    laid: dict[int, Any] = {}

    def lay(name: int) -> Any:
        if name not in laid:
            laid[name] = _lay(values[name], _axis(recipe, name), sharding)
        return laid[name]

    read = {name: lay(name) for name in _read(recipe) if name in values}
    if keys is not None:
        keys = keys.spread(sharding)
    if where is not None:
        where = sharding.place(where, 0)
    if recipe.compiled.value is None:
        recipe.compiled.value = _compile(recipe, sharding)
    made, made_aux = recipe.compiled.value(read, keys, where)

    # What is no array is the same whatever the lanes, and is only looked up.
    news, finish = iter(made), Finish(recipe.plan, values, recipe.axes, None, None)
    leaves: list[Any] = []
    for leaf, is_made in zip(recipe.placed, _made(recipe), strict=True):
        if is_made:
            leaves.append(next(news))
        elif leaf.written:
            leaves.append(finish.leaf(leaf))
        else:
            leaves.append(lay(cast(int, leaf.original)))
    aux = [
        [
            next(column) if _is_array(recipe, name) else finish.with_lanes(name)
            for name in each.names
        ]
        for each, column in zip(recipe.plan.aux, map(iter, made_aux), strict=True)
    ]
    return Results(leaves, aux)


def _compile(recipe: Recipe, sharding: LaneSharding) -> Callable[..., Any]:
    """The program of arrays by name, keys and mask; it returns written arrays, and the
    arrays of `aux`."""
    lanes = cast(Lanes, recipe.lanes)
    local = lanes.on_device()
    made = [
        x for x, is_made in zip(recipe.placed, _made(recipe), strict=True) if is_made
    ]
    out_axes = [0 if leaf.has_lanes else None for leaf in made]

    def run(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> tuple[Sequence[Any], Sequence[Sequence[Any]]]:
        if keys is not None:
            keys = dataclasses.replace(keys, size=local.size)
        values = dict(read)
        run_script(recipe.script, values, keys)
        finish = Finish(recipe.plan, values, recipe.axes, local.size, where)
        aux = [
            [finish.with_lanes(name) for name in each.names if _is_array(recipe, name)]
            for each in recipe.plan.aux
        ]
        return list(map(finish.leaf, made)), aux

    def run_auto(*inputs: Any) -> Any:
        leaves, aux = run(*inputs)
        pairs = zip(leaves, out_axes, strict=True)
        return (
            [sharding.place(x, axis) for x, axis in pairs],
            [[sharding.place(x, 0) for x in each] for each in aux],
        )

    def run_apart(
        read: Mapping[int, Any], keys: LaneKeys | None, where: jax.Array | None
    ) -> Any:
        read_specs = {name: sharding.spec(_axis(recipe, name)) for name in read}
        own = sharding.spec(0)
        mapped = cast(Any, jax).shard_map(
            run,
            mesh=sharding.mesh,
            in_specs=(read_specs, own, own),
            out_specs=([sharding.spec(axis) for axis in out_axes], own),
            axis_names=set(sharding.names),
            # What is written once for all lanes comes out the same on all devices.
            check_vma=False,
        )
        return mapped(read, keys, where)

    return jax.jit(run_apart if lanes.is_apart else run_auto)


def _made(recipe: Recipe) -> list[bool]:
    """Which leaves of the result are arrays that the program makes."""
    return [leaf.written and _is_array(recipe, leaf.name) for leaf in recipe.placed]


def _read(recipe: Recipe) -> set[int]:
    """The names of what the program reads, among other values."""
    names = {name for step in recipe.plan.steps for row in step.inputs for name in row}
    for leaf in recipe.placed:
        if leaf.written and _is_array(recipe, leaf.name):
            names.add(leaf.name)
            if recipe.has_mask and leaf.original is not None:
                names.add(leaf.original)
    for each in recipe.plan.aux:
        names.update(name for name in each.names if _is_array(recipe, name))
    return names


def _is_array(recipe: Recipe, name: int) -> bool:
    return isinstance(recipe.plan.specs[name], ArraySpec)


def _axis(recipe: Recipe, name: int) -> int | None:
    """The lane axis of an array of the target or the arguments, from the front."""
    spec = recipe.plan.specs[name]
    if not isinstance(spec, ArraySpec) or spec.axis is None:
        return None
    return spec.axis % (len(spec.struct.shape) + 1)


def _lay(x: Any, axis: int | None, sharding: LaneSharding) -> Any:
    if axis is not None:
        return sharding.place(x, axis)
    # What is on the host is at hand for all devices.
    return sharding.replicate(x) if isinstance(x, jax.Array) else x
