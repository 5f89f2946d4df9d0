"""How a computation of one lane of one node is mapped over many of both.

Lanes lie in front, and the nodes of a stack right behind them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._kind import Lanes


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes the inputs of a block have, and which lanes its outputs get.

    `nodes` is the number of nodes that are stacked, `None` for a single one, and
    `halves` whether one half of them runs after the other. An output without lanes is
    the same in all of them.
    """

    lanes: Lanes | None
    nodes: int | None
    in_lanes: tuple[bool, ...]
    in_nodes: tuple[bool, ...]
    out_lanes: tuple[bool, ...]
    halves: bool = False


def over_nodes(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Maps a computation over lanes and nodes."""
    lanes, nodes = layout.lanes, layout.nodes

    def node(*parts: Any) -> tuple[Any, ...]:
        return over_lanes(lane, lanes, layout.in_lanes, layout.out_lanes, parts)

    if nodes is None:
        return node(*inputs)
    if layout.halves:
        return _in_halves(lane, layout, inputs, nodes)
    is_plain = (
        lanes is not None and lanes == Lanes(lanes.size) and all(layout.out_lanes)
    )
    if lanes is not None and is_plain and layout.in_lanes == layout.in_nodes:
        # XLA compiles random draws over one axis in half the time it takes over two.
        count = lanes.size * nodes
        pairs = zip(inputs, layout.in_lanes, strict=True)
        # Not -1, which an empty array leaves open.
        flat = [x.reshape(count, *x.shape[2:]) if has else x for x, has in pairs]
        outputs = over_lanes(
            lane, Lanes(count), layout.in_lanes, layout.out_lanes, flat
        )
        return tuple(x.reshape(lanes.size, nodes, *x.shape[1:]) for x in outputs)
    pairs = zip(layout.in_nodes, layout.in_lanes, strict=True)
    in_axes = tuple(int(behind) if has else None for has, behind in pairs)
    return jax.vmap(node, in_axes, tuple(map(int, layout.out_lanes)), axis_size=nodes)(
        *inputs
    )


def _in_halves(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any], nodes: int
) -> tuple[Any, ...]:
    """Maps one half of the nodes after the other, by a loop of two steps.

    What a program does to one node's row of the outputs, XLA would otherwise merge with
    all of the computation, once for each row; it does not reach into a loop. 400 nodes
    that draw compile in a third of the time.
    """
    half = (nodes + 1) // 2

    def cut(x: Any, axis: int) -> Any:
        first = jax.lax.slice_in_dim(x, 0, half, axis=axis)
        second = jax.lax.slice_in_dim(x, nodes - half, nodes, axis=axis)
        return jnp.stack([first, second])

    def join(x: Any, axis: int) -> Any:
        rest = jax.lax.slice_in_dim(x[1], 2 * half - nodes, half, axis=axis)
        return jnp.concatenate([x[0], rest], axis=axis)

    pairs = enumerate(zip(layout.in_nodes, layout.in_lanes, strict=True))
    cuts = {i: cut(inputs[i], int(lanes)) for i, (has, lanes) in pairs if has}
    part = dataclasses.replace(layout, nodes=half, halves=False)

    def step(carry: None, parts: dict[int, Any]) -> tuple[None, tuple[Any, ...]]:
        own = [parts.get(i, x) for i, x in enumerate(inputs)]
        return carry, over_nodes(lane, part, own)

    _, outputs = jax.lax.scan(step, None, cuts, length=2)
    return tuple(map(join, outputs, map(int, layout.out_lanes)))


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
