"""How a computation of one lane of one node is mapped over many of both."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._kind import Lanes


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the inputs of one run lie: their node axes, and their lane axes.

    `nodes` is the number of nodes that run together, `None` for a node alone. A lane
    axis is counted without the node axis. An output without lanes is the same in all of
    them and comes without a lane axis. `lanes_first` is whether the outputs of many
    nodes have their lanes in front of the node axis, `halves` whether to run one half
    of the nodes after the other, and `apart` whether to return the nodes' outputs one
    by one.
    """

    nodes: int | None
    node_axes: tuple[int | None, ...]
    axes: tuple[int | None, ...]
    lanes: Lanes | None
    out_lanes: tuple[bool, ...]
    lanes_first: bool = False
    halves: bool = False
    apart: bool = False

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The node axis of each output."""
        return tuple(int(self.lanes_first and has) for has in self.out_lanes)


def over_nodes(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Maps a computation over lanes, and then over nodes."""
    if layout.nodes is None:
        return over_lanes(lane, layout, inputs)
    if layout.halves:
        return _in_halves(lane, layout, inputs, layout.nodes)
    if _is_flat(layout):
        return _over_flat(lane, layout, inputs, layout.nodes)

    def node(*parts: Any) -> tuple[Any, ...]:
        return over_lanes(lane, layout, parts)

    axes = layout.node_axes, layout.out_axes
    return jax.vmap(node, *axes, axis_size=layout.nodes)(*inputs)


def take_row(
    arrays: Sequence[Any], row: Any, axes: Sequence[int]
) -> tuple[jax.Array, ...]:
    """The arrays of one node, taken out of stacks with these node axes."""
    pairs = zip(arrays, axes, strict=True)
    taken: list[Any] = [
        jax.lax.index_in_dim(x, row, axis, keepdims=False)
        if isinstance(row, int)
        else jax.lax.dynamic_index_in_dim(x, row, axis, keepdims=False)
        for x, axis in pairs
    ]
    return tuple(taken)


def _is_flat(layout: Layout) -> bool:
    """Whether every input has both axes, in the order of the outputs, or none."""
    lanes = layout.lanes
    if lanes is None or lanes != Lanes(lanes.size) or not all(layout.out_lanes):
        return False
    pairs = zip(layout.axes, layout.node_axes, strict=True)
    return all(pair in ((0, layout.lanes_first), (None, None)) for pair in pairs)


def _over_flat(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any], nodes: int
) -> tuple[Any, ...]:
    """Maps over lanes and nodes as one axis.

    XLA compiles random draws over one axis in half the time that it takes over two.
    """
    assert layout.lanes is not None
    lanes = layout.lanes.size
    shape = (lanes, nodes) if layout.lanes_first else (nodes, lanes)
    pairs = zip(inputs, layout.axes, strict=True)
    # Not -1, which an empty array leaves open.
    flat = [
        x if axis is None else x.reshape(lanes * nodes, *x.shape[2:])
        for x, axis in pairs
    ]
    outputs = jax.vmap(lane, layout.axes, 0, axis_size=lanes * nodes)(*flat)
    return tuple(x.reshape(*shape, *x.shape[1:]) for x in outputs)


def _in_halves(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any], nodes: int
) -> tuple[Any, ...]:
    """Maps over one half of the nodes after the other, by a loop of two steps.

    What a program does to one node's slice of the outputs, XLA would otherwise merge
    with all of the computation, once for each slice; it does not reach into a loop.
    """
    half = (nodes + 1) // 2

    def cut(x: Any, axis: int) -> Any:
        first = jax.lax.slice_in_dim(x, 0, half, axis=axis)
        second = jax.lax.slice_in_dim(x, nodes - half, nodes, axis=axis)
        return jnp.stack([first, second])

    axes = dict(enumerate(layout.node_axes))
    cuts = {i: cut(inputs[i], a) for i, a in axes.items() if a is not None}
    part = dataclasses.replace(layout, nodes=half, halves=False)

    def step(carry: None, parts: dict[int, Any]) -> tuple[None, tuple[Any, ...]]:
        own = [parts.get(i, x) for i, x in enumerate(inputs)]
        return carry, over_nodes(lane, part, own)

    _, outputs = jax.lax.scan(step, None, cuts, length=2)

    def join(x: Any, axis: int) -> Any:
        rest = jax.lax.slice_in_dim(x[1], 2 * half - nodes, half, axis=axis)
        return jnp.concatenate([x[0], rest], axis=axis)

    return tuple(map(join, outputs, layout.out_axes))


def over_lanes(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Maps a computation over lanes: all at once, or in chunks one after the other."""
    lanes = layout.lanes
    if lanes is None:
        return tuple(lane(*inputs))
    if lanes.chunk_size is not None and lanes.chunk_size < lanes.size:
        return _over_chunks(lane, layout, inputs, lanes, lanes.chunk_size)

    def one(*parts: Any) -> tuple[Any, ...]:
        return tuple(lane(*parts))

    return jax.vmap(
        one,
        in_axes=layout.axes,
        out_axes=tuple(0 if has else None for has in layout.out_lanes),
        axis_name=lanes.axis_name,
        axis_size=lanes.size,
        spmd_axis_name=lanes.spmd_axis_name,
    )(*inputs)


def _over_chunks(
    lane: Callable[..., Any],
    layout: Layout,
    inputs: Sequence[Any],
    lanes: Lanes,
    chunk_size: int,
) -> tuple[Any, ...]:
    mapped = {
        i: jnp.moveaxis(x, axis, 0)
        for i, (x, axis) in enumerate(zip(inputs, layout.axes, strict=True))
        if axis is not None
    }

    def one(parts: dict[int, Any]) -> list[Any]:
        return list(lane(*[parts.get(i, x) for i, x in enumerate(inputs)]))

    def with_lanes(step: tuple[jax.Array, dict[int, Any]]) -> list[Any]:
        outputs = zip(one(step[1]), layout.out_lanes, strict=True)
        return [x for x, has in outputs if has]

    # The lane's number is mapped too, so that there is something to map over. Chunks
    # are cut by hand: `jax.lax.map` can't cut arrays without elements.
    steps = (jnp.arange(lanes.size), mapped)
    count = lanes.size // chunk_size
    whole = count * chunk_size

    def cut(x: Any) -> Any:
        return x[:whole].reshape(count, chunk_size, *x.shape[1:])

    def left(x: Any) -> Any:
        return x[whole:]

    run = jax.vmap(with_lanes, spmd_axis_name=lanes.spmd_axis_name)
    chunks = jtu.tree_map(cut, steps)
    _, parts = jax.lax.scan(lambda _, step: (None, run(step)), None, chunks)
    batched = [x.reshape(whole, *x.shape[2:]) for x in parts]
    if whole < lanes.size:
        pairs = zip(batched, run(jtu.tree_map(left, steps)), strict=True)
        batched = [jnp.concatenate(pair) for pair in pairs]
    if all(layout.out_lanes):
        return tuple(batched)
    shared = one({i: x[0] for i, x in mapped.items()})
    outputs = zip(shared, layout.out_lanes, strict=True)
    return tuple(batched.pop(0) if has else x for x, has in outputs)


def all_lanes(axes: tuple[int | None, ...], lanes: Lanes, outputs: int) -> Layout:
    """The layout of one node, all lanes at once."""
    lanes = dataclasses.replace(lanes, chunk_size=None)
    return Layout(None, (), axes, lanes, (True,) * outputs)
