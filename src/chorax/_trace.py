"""Tracing a kind, and the program that runs it for many nodes and lanes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core as jec
import jax.numpy as jnp
import jax.tree_util as jtu

# `dce_jaxpr` has no public counterpart. It tells which inputs a computation reads; if
# it moves, every input can be taken as read, at the cost of stacking leaves in vain.
from jax.interpreters.partial_eval import dce_jaxpr

from ._annotations import check_result
from ._kind import ArraySpec, Call, Kind, Lanes, Outcome
from ._lane import call_lane
from ._memo import Cell, recall, surroundings
from ._paths import Path


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the inputs of one run lie: which are stacked over nodes, and the lane axes.

    `nodes` is the number of nodes that run together, `None` for a node alone. An axis
    is counted without the node axis, which comes first. An output without lanes is the
    same in all of them and comes without a lane axis.
    """

    nodes: int | None
    stacked: tuple[bool, ...]
    axes: tuple[int | None, ...]
    lanes: Lanes | None
    out_lanes: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What a kind's method does, found by running its Python once.

    `reads` are the indices of the inputs that the computation reads, `outputs` its new
    arrays as one lane sees them. `axes` are the lane axes of all inputs, where there
    are lanes.
    """

    computation: jec.ClosedJaxpr
    reads: tuple[int, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    outcome: Outcome
    axes: tuple[int | None, ...]
    label: str
    has_effects: bool

    @functools.cached_property
    def program(self) -> Callable[..., tuple[Any, ...]]:
        """The compiled computation: `program(layout, *inputs)`."""
        lane = jec.jaxpr_as_fun(self.computation)

        def run(layout: Layout, *inputs: Any) -> tuple[Any, ...]:
            return over_nodes(lane, layout, inputs)

        return jax.jit(run, static_argnums=0)

    def varies(self, lanes: Lanes) -> tuple[bool, ...]:
        """For each output, whether it can differ from lane to lane."""
        flags = LaneFlags()
        lane = jec.jaxpr_as_fun(self.computation)
        axes = tuple(self.axes[i] for i in self.reads)
        layout = all_lanes(axes, lanes, len(self.outputs))
        jax.eval_shape(
            lambda *xs: over_lanes(lambda *ys: flags.watch(lane(*ys)), layout, xs),
            *[
                _with_lanes(v.aval, axis, lanes.size)
                for v, axis in zip(self.computation.jaxpr.invars, axes, strict=True)
            ],
        )
        return flags.seen


def trace_kind(kind: Kind, call: Call, path: Path) -> Trace:
    """The trace of a kind, remembered from an earlier call if there was one."""
    try:
        cell = recall((surroundings(), call.token, kind.token))
    except TypeError:
        cell = Cell()  # Something static can't be a key: nothing is remembered.
    if cell.value is None:
        trace = _trace(kind, call, path)
        if any(isinstance(x, jax.core.Tracer) for x in trace.computation.consts):
            return trace  # It closes over a value of a transformation around us.
        cell.value = trace
    return cell.value


def _trace(kind: Kind, call: Call, path: Path) -> Trace:
    outcome: Outcome | None = None

    def lane(*inputs: Any) -> list[Any]:
        nonlocal outcome
        news, outcome = call_lane(kind, call, inputs, path)
        return news

    arrays = [s for s in (*kind.specs, *call.specs) if isinstance(s, ArraySpec)]
    if kind.gets_key and call.key is not None:
        arrays.append(ArraySpec(call.key, 0))
    lanes = call.lanes
    named = lanes is not None and lanes.axis_name is not None
    closed = jax.make_jaxpr(
        lane, axis_env=[(lanes.axis_name, lanes.size)] if lanes and named else None
    )(*[spec.struct for spec in arrays])
    assert outcome is not None
    outputs = tuple(
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type)
        for a in (v.aval for v in closed.jaxpr.outvars)
    )
    check_result(kind, call, outcome, outputs, path)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return Trace(
        computation=jec.ClosedJaxpr(jaxpr, closed.consts),
        reads=tuple(i for i, is_used in enumerate(used) if is_used),
        outputs=outputs,
        outcome=outcome,
        axes=tuple(spec.axis for spec in arrays),
        label=f"`{call.label}` of {kind.name}",
        has_effects=bool(jaxpr.effects),
    )


def over_nodes(
    lane: Callable[..., Any], layout: Layout, inputs: Sequence[Any]
) -> tuple[Any, ...]:
    """Maps a computation over lanes, and then over nodes."""

    def node(*parts: Any) -> tuple[Any, ...]:
        return over_lanes(lane, layout, parts)

    if layout.nodes is None:
        return node(*inputs)
    axes = tuple(0 if stacked else None for stacked in layout.stacked)
    return jax.vmap(node, axes, 0, axis_size=layout.nodes)(*inputs)


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


class LaneFlags:
    """Watches arrays pass inside `jax.vmap`, and notes which of them are mapped."""

    def __init__(self) -> None:
        self.seen: tuple[bool, ...] = ()

    def watch(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arrays, unchanged."""
        if not arrays:
            return ()
        self.seen = (False,) * len(arrays)

        @jax.custom_batching.custom_vmap
        def pass_on(*xs: Any) -> tuple[Any, ...]:
            return xs

        @pass_on.def_vmap
        def _(size: int, mapped: Any, *xs: Any) -> tuple[Any, Any]:
            del size
            self.seen = tuple(bool(m) for m in mapped)
            return xs, tuple(mapped)

        return tuple(pass_on(*arrays))


def all_lanes(axes: tuple[int | None, ...], lanes: Lanes, outputs: int) -> Layout:
    """The layout of one node, all lanes at once."""
    lanes = dataclasses.replace(lanes, chunk_size=None)
    return Layout(None, (), axes, lanes, (True,) * outputs)


def _with_lanes(aval: Any, axis: int | None, size: int) -> jax.ShapeDtypeStruct:
    shape = list(aval.shape)
    if axis is not None:
        shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, size)
    return jax.ShapeDtypeStruct(tuple(shape), aval.dtype, weak_type=aval.weak_type)
