"""Unbatched results of a mapped function, sharded like its mapped arguments.

The optimiser state of a sharded ensemble is the main case: it starts as zeros that do
not depend on the parameters, which `jax.vmap` broadcasts on a single device.
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


def shard_unbatched(
    result: Any, out_axes: Axes, arguments: Sequence[Any], in_axes: Axes
) -> Any:
    """The result of a mapped function, inside `jax.vmap`. Its unbatched leaves that get
    a lane axis will be sharded like the mapped arguments."""
    pairs = zip(arguments, in_axes, strict=True)
    mapped = [x for x, axis in pairs if axis is not None]
    lane = next((x for x in mapped if _is_plain(x) and x.size), None)
    if lane is None or cast(Any, jax).device_count() == 1:
        return result
    leaves, structure = jtu.tree_flatten(result)
    rows = enumerate(zip(leaves, out_axes, strict=True))
    plain = [i for i, (x, axis) in rows if axis is not None and _is_plain(x)]
    sharded = _sharded_like(lane, [leaves[index] for index in plain])
    for index, x in zip(plain, sharded, strict=True):
        leaves[index] = x
    return jtu.tree_unflatten(structure, leaves)


# Only its rule is told which of the results are batched.
@jax.custom_batching.custom_vmap
def _sharded_like(lane: Any, results: list[Any]) -> list[Any]:
    del lane
    return results


@_sharded_like.def_vmap
def _rule(size: int, batched: Any, lane: Any, results: Any) -> Any:
    is_batched = list(batched[1])
    lay_out = _layout(lane) if batched[0] else None
    if lay_out is not None:
        for index, x in enumerate(results):
            if not is_batched[index]:
                results[index] = lay_out(jnp.broadcast_to(x, (size, *x.shape)))
                is_batched[index] = True
    return results, is_batched


def _layout(lane: Any) -> Callable[[Any], Any] | None:
    """A function that shards an array along axis 0 like this one; `None` where JAX
    does so or nothing is sharded."""
    in_jit = surroundings()[1]
    if isinstance(lane, jax.core.Tracer):
        # Explicit shardings are part of the type, and `jax.vmap` keeps them. Others are
        # chosen by the compiler later.
        aval: Any = lane.aval
        is_explicit = any(entry is not None for entry in aval.sharding.spec)
        return functools.partial(_tie, lane) if in_jit and not is_explicit else None
    found: Any = getattr(lane, "sharding", None)
    if in_jit or not isinstance(found, NamedSharding) or not found.spec:
        return None
    return functools.partial(LaneSharding(found.mesh, found.spec[0]).place, axis=0)


def _tie(lane: Any, x: Any) -> Any:
    column = lane[(slice(None), *[0] * (lane.ndim - 1))]
    column = column.reshape(-1, *[1] * (x.ndim - 1))
    # The compiler copies a constant for each use, and would shard one copy only.
    x = cast(Any, jax.lax).optimization_barrier(x)
    return cast(Any, alike).shard_alike(jnp.broadcast_to(column, x.shape), x)[1]


def _is_plain(x: Any) -> bool:
    """Whether it is a JAX array other than keys, whose data have more axes."""
    is_array = isinstance(x, jax.Array)
    return is_array and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
