"""What comes out the same in all lanes, laid out where the lanes are.

The optimiser state of a sharded ensemble is the case in point: zeros that depend on no
lane, which `jax.vmap` repeats on a single device, and a compiler wherever it likes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.core
import jax.custom_batching
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.experimental import shard_alike as alike
from jax.sharding import NamedSharding

from .._tree._memo import surroundings
from ._axes import Axes
from ._spread import LaneSharding


def beside_lanes(
    result: Any, out_axes: Axes, arguments: Sequence[Any], in_axes: Axes
) -> Any:
    """Inside a mapped function: its result, in which leaves that get a lane axis, but
    depend on no lane, will be laid out as the mapped arguments are."""
    pairs = zip(arguments, in_axes, strict=True)
    mapped = [x for x, axis in pairs if axis is not None]
    lane = next((x for x in mapped if _is_plain(x) and x.size), None)
    if lane is None or cast(Any, jax).device_count() == 1:
        return result
    leaves, structure = jtu.tree_flatten(result)
    rows = enumerate(zip(leaves, out_axes, strict=True))
    plain = [i for i, (x, axis) in rows if axis is not None and _is_plain(x)]
    laid_out = _beside(lane, [leaves[index] for index in plain])
    for index, x in zip(plain, laid_out, strict=True):
        leaves[index] = x
    return jtu.tree_unflatten(structure, leaves)


@jax.custom_batching.custom_vmap
def _beside(lane: Any, results: list[Any]) -> list[Any]:
    del lane
    return results


@_beside.def_vmap
def _rule(size: int, batched: Any, lane: Any, results: Any) -> Any:
    is_mapped = list(batched[1])
    lie_alike = _layout(lane)
    if lie_alike is not None and batched[0]:
        for index, x in enumerate(results):
            if not is_mapped[index]:
                results[index] = lie_alike(jnp.broadcast_to(x, (size, *x.shape)))
                is_mapped[index] = True
    return results, is_mapped


def _layout(lane: Any) -> Callable[[Any], Any] | None:
    """Lays an array out as this one lies along axis 0; `None` where it is not for us to
    do."""
    in_jit = surroundings()[1]
    if isinstance(lane, jax.core.Tracer):
        # An explicit layout is a type, which JAX goes by; any other is not known yet.
        aval: Any = lane.aval
        is_explicit = any(entry is not None for entry in aval.sharding.spec)
        return functools.partial(_tied, lane) if in_jit and not is_explicit else None
    found: Any = getattr(lane, "sharding", None)
    if in_jit or not isinstance(found, NamedSharding) or not found.spec:
        return None
    return functools.partial(LaneSharding(found.mesh, found.spec[0]).place, axis=0)


def _tied(lane: Any, x: Any) -> Any:
    column = lane[(slice(None), *[0] * (lane.ndim - 1))]
    column = column.reshape(-1, *[1] * (x.ndim - 1))
    # A constant would be copied to each of its uses, and the layout to one of them.
    x = cast(Any, jax.lax).optimization_barrier(x)
    return cast(Any, alike).shard_alike(jnp.broadcast_to(column, x.shape), x)[1]


def _is_plain(x: Any) -> bool:
    """Whether it is an array of JAX, but not of keys, which have axes of their own."""
    is_array = isinstance(x, jax.Array)
    return is_array and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
