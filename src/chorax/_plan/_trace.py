"""Tracing a kind: its method's Python runs once, for one node in one lane."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jec

# `dce_jaxpr` has no public counterpart. It finds which inputs a computation reads; if
# it moves, every input can be taken as read, and more leaves are stacked.
from jax.interpreters.partial_eval import dce_jaxpr

from .._text._places import Path
from .._tree._memo import Cell, kind_cell, surroundings
from ._computation import Computation, computation_of
from ._kind import ArraySpec, Call, Kind, Lanes, Outcome
from ._levels import call_lane
from ._over_lanes import over_lanes


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What a kind's method does.

    `reads` are the indices of the inputs that the computation reads, and `in_lanes` is
    whether those have a lane axis. `outputs` are its new arrays as one lane sees them.
    """

    computation: Computation
    reads: tuple[int, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    outcome: Outcome
    in_lanes: tuple[bool, ...]
    label: str

    @property
    def lasts(self) -> bool:
        """Whether later calls may use it."""
        return self.computation.lasts and self.outcome.is_fixed

    def varies(self, lanes: Lanes) -> tuple[bool, ...]:
        """For each output, whether it can differ from lane to lane."""
        flags = LaneFlags()
        lane = self.computation
        lanes = dataclasses.replace(lanes, chunk_size=None)
        out_lanes = (True,) * len(self.outputs)
        pairs = zip(lane.closed.jaxpr.invars, self.in_lanes, strict=True)

        def watched(*inputs: Any) -> Any:
            return flags.watch(lane(*inputs))

        jax.eval_shape(
            lambda *xs: over_lanes(watched, lanes, self.in_lanes, out_lanes, xs),
            *[_with_lanes(v.aval, lanes.size) if has else v.aval for v, has in pairs],
        )
        return flags.seen


def trace_kind(kind: Kind, call: Call, path: Path) -> Trace:
    """The trace of a kind, remembered from an earlier call if there was one."""
    inputs = _inputs(kind, call)
    # A lane does not see whether there are others, nor where arrays are.
    specs = [
        dataclasses.replace(spec, has_lanes=False, place=None)
        if isinstance(spec, ArraySpec)
        else spec
        for spec in kind.specs
    ]
    kind = dataclasses.replace(kind, specs=tuple(specs))
    try:
        cell = kind_cell((surroundings()[0], call.token, kind.token))
    except TypeError:
        cell = Cell()  # Something static can't be a key: nothing is remembered.
    trace: Trace | None = cell.value
    if trace is None:
        trace = _trace(kind, call, path)
        if trace.lasts:
            cell.value = trace
    in_lanes = tuple(inputs[i].has_lanes for i in trace.reads)
    return dataclasses.replace(trace, in_lanes=in_lanes)


def _inputs(kind: Kind, call: Call) -> list[ArraySpec]:
    """The arrays that a computation may read, in the order of its inputs."""
    inputs = [s for s in (*kind.specs, *call.specs) if isinstance(s, ArraySpec)]
    if kind.gets_key and call.key is not None:
        inputs.append(ArraySpec(call.key, call.lanes is not None))
    return inputs


def _trace(kind: Kind, call: Call, path: Path) -> Trace:
    outcome: Outcome | None = None

    def lane(*inputs: Any) -> list[Any]:
        nonlocal outcome
        news, outcome = call_lane(kind, call, inputs, path)
        return news

    specs = _inputs(kind, call)
    lanes = call.lanes
    named = lanes is not None and lanes.axis_name is not None
    closed = jax.make_jaxpr(
        lane, axis_env=[(lanes.axis_name, lanes.size)] if lanes and named else None
    )(*[spec.struct for spec in specs])
    assert outcome is not None
    outputs = tuple(
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type)
        for a in (v.aval for v in closed.jaxpr.outvars)
    )
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    reads = tuple(i for i, is_used in enumerate(used) if is_used)
    return Trace(
        computation=computation_of(jec.ClosedJaxpr(jaxpr, closed.consts)),
        reads=reads,
        outputs=outputs,
        outcome=outcome,
        in_lanes=tuple(specs[i].has_lanes for i in reads),
        label=f"`{call.label}` of {kind.name}",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class PlainRun:
    """What a method did without `jit`: what a `Trace` says, and the new `arrays`.

    `mapped` is whether each output can differ from lane to lane.
    """

    outcome: Outcome
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    mapped: tuple[bool, ...]
    arrays: tuple[jax.Array, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """Nothing: it has run."""
        return ()

    @property
    def lasts(self) -> bool:
        """No later call may use it."""
        return False

    def varies(self, lanes: Lanes) -> tuple[bool, ...]:
        """For each output, whether it can differ from lane to lane."""
        del lanes
        return self.mapped


class LaneFlags:
    """Records which of the arrays that pass inside `jax.vmap` are mapped."""

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


def _with_lanes(aval: Any, size: int) -> jax.ShapeDtypeStruct:
    shape = (size, *aval.shape)
    return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)
