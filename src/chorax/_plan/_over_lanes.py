"""Mapping a computation of one lane over all lanes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._kind import Lanes


def over_lanes(
    lane: Callable[..., Any],
    lanes: Lanes | None,
    in_lanes: Sequence[bool],
    out_lanes: Sequence[bool],
    inputs: Sequence[Any],
) -> tuple[Any, ...]:
    """Maps a computation over lanes: all at once, or in chunks one after the other."""
    if lanes is None:
        return tuple(lane(*inputs))
    if lanes.chunk_size is not None and lanes.chunk_size < lanes.size:
        mapped = {i: x for i, x in enumerate(inputs) if in_lanes[i]}

        def one(step: tuple[Any, dict[int, Any]]) -> tuple[Any, ...]:
            return tuple(lane(*[step[1].get(i, x) for i, x in enumerate(inputs)]))

        outputs = _in_chunks(one, lanes, lanes.chunk_size, mapped)
        pairs = zip(outputs, out_lanes, strict=True)
        return tuple(x if has else x[0] for x, has in pairs)

    def one_lane(*parts: Any) -> tuple[Any, ...]:
        return tuple(lane(*parts))

    return jax.vmap(
        one_lane,
        in_axes=tuple(0 if has else None for has in in_lanes),
        out_axes=tuple(0 if has else None for has in out_lanes),
        axis_name=lanes.axis_name,
        axis_size=lanes.size,
        spmd_axis_name=lanes.spmd_axis_name,
    )(*inputs)


def _in_chunks(
    one: Callable[..., Any], lanes: Lanes, chunk_size: int, mapped: dict[int, Any]
) -> Sequence[Any]:
    # The lane's number is mapped too, so that there is something to map over. Chunks
    # are cut by hand: `jax.lax.map` can't cut arrays without elements.
    steps = jnp.arange(lanes.size), mapped
    count = lanes.size // chunk_size
    whole = count * chunk_size
    run = jax.vmap(one, spmd_axis_name=lanes.spmd_axis_name)

    def cut(x: Any) -> Any:
        return x[:whole].reshape(count, chunk_size, *x.shape[1:])

    def left(x: Any) -> Any:
        return x[whole:]

    chunks = jtu.tree_map(cut, steps)
    _, parts = jax.lax.scan(lambda _, step: (None, run(step)), None, chunks)
    outputs = [x.reshape(whole, *x.shape[2:]) for x in parts]
    if whole == lanes.size:
        return outputs
    rest = run(jtu.tree_map(left, steps))
    return [jnp.concatenate(pair) for pair in zip(outputs, rest, strict=True)]
