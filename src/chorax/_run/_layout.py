"""How the computation of one node in one lane is mapped over nodes and lanes.

The lane axis is in front, and the axis of stacked nodes right behind it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._plan._kind import Lanes
from .._plan._over_lanes import over_lanes


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which axes the inputs and outputs of a block have.

    `nodes` is the number of stacked nodes, `None` for a single one. `has_key` is
    whether they read their keys, and `halves` whether one half of them runs after the
    other. An output without a lane axis is the
    same in all lanes.
    """

    lanes: Lanes | None
    nodes: int | None
    in_lanes: tuple[bool, ...]
    in_nodes: tuple[bool, ...]
    out_lanes: tuple[bool, ...]
    has_key: bool = False
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
        # XLA compiles random draws over one axis in half the time that two take.
        count = lanes.size * nodes
        pairs = zip(inputs, layout.in_lanes, strict=True)
        # Not -1, which is ambiguous for an empty array.
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

    XLA fuses whatever a program does with one node's row of the outputs with the whole
    computation, once per row; it does not fuse into a loop. 400 nodes that draw compile
    in a third of the time.
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
