"""Running methods plainly, under `jax.disable_jit()`: real values, for debugging."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._plan._kind import ArraySpec, Call, Kind, Outcome
from .._plan._levels import call_lane
from .._plan._trace import LaneFlags, PlainRun
from .._text._places import Path
from .._tree._keys import LaneKeys, path_table


def run_plainly(
    call: Call, keys: LaneKeys | None, kind: Kind, inputs: Sequence[Any], path: Path
) -> PlainRun:
    """Calls one node's method on values, under `jax.vmap` where there are lanes."""
    lanes = call.lanes
    flags = LaneFlags()
    seen: list[tuple[Outcome, tuple[jax.ShapeDtypeStruct, ...]]] = []

    def lane(*parts: Any) -> tuple[Any, ...]:
        news, outcome = call_lane(kind, call, parts, path)
        structs = tuple(map(_struct, news))
        seen.append((outcome, structs))
        if lanes is not None:
            # On a side branch: the watching function has no reverse-mode derivative.
            flags.watch([jax.lax.stop_gradient(x) for x in news])
        return tuple(news)

    values = _own_objects(inputs)
    specs = [s for s in (*kind.specs, *call.specs) if isinstance(s, ArraySpec)]
    mapped = [spec.has_lanes for spec in specs]
    if kind.gets_key and keys is not None:
        [words] = path_table([path])
        values.append(keys.of_node(words))
        mapped.append(True)
    if lanes is None:
        arrays = lane(*values)
    else:
        arrays = jax.vmap(
            lane,
            in_axes=tuple(0 if has else None for has in mapped),
            out_axes=0,
            axis_name=lanes.axis_name,
            axis_size=lanes.size,
            spmd_axis_name=lanes.spmd_axis_name,
        )(*values)
    [(outcome, structs)] = seen
    return PlainRun(outcome, structs, flags.seen, arrays)


def _struct(x: Any) -> jax.ShapeDtypeStruct:
    # An array of typed keys has no such attribute.
    weak = bool(getattr(x, "weak_type", False))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)


def _own_objects(inputs: Sequence[Any]) -> list[Any]:
    """JAX arrays as in a trace, so that a method can't write into a NumPy array of the
    target, and no two the same object, since what it returns is told by identity."""
    arrays: list[Any] = []
    known: set[int] = set()
    for x in inputs:
        array: Any = jnp.asarray(x)
        arrays.append(array.copy() if id(array) in known else array)
        known.add(id(array))
    return arrays
