"""Random keys: one a lane, and from it one a node.

A node's key is `fold_in(fold_in(lane_key, high), low)`, where `high` and `low` are the
first two 32-bit words of the SHA-256 of the node's path. The path alone decides, so
that no other node, and no order, changes a node's draws; 64 bits keep two paths from
sharing them by accident.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._paths import Path, path_words


def lane_keys(key: Any, size: int | None) -> jax.Array | None:
    """The key of every lane, shape `(size,)`; the key itself where `size` is `None`."""
    if key is None:
        return None
    if not eqx.is_array(key) or not (_is_typed(key) or key.dtype == np.uint32):
        raise TypeError(
            "`key` must be a PRNG key, as `jax.random.key(0)` makes, or an array of "
            f"them, one a lane; got {_show(key)}."
        )
    key = jnp.asarray(key)
    # A legacy key is an array of words: the last axis is the key's own.
    words = () if _is_typed(key) else _legacy_shape()
    if words and key.shape[key.ndim - len(words) :] != words:
        raise ValueError(
            f"`key` must be a PRNG key, of which a legacy one has shape {words}, or an "
            f"array of them; got {_show(key)}."
        )
    shape = key.shape[: key.ndim - len(words)]
    if shape == ():
        return key if size is None else jax.random.split(key, size)
    if size is None:
        raise ValueError(
            f"`key` must be one PRNG key, but got an array of them of shape {shape}. "
            "One key a lane is for `vmap_call_all_fns`."
        )
    if shape != (size,):
        raise ValueError(
            f"`key` must be one PRNG key or an array of `axis_size` keys, one a lane: "
            f"expected shape ({size},), got {shape}."
        )
    return key


def lane_key_struct(keys: jax.Array, lanes: bool) -> jax.ShapeDtypeStruct:
    """The key as a single lane sees it."""
    return jax.ShapeDtypeStruct(keys.shape[1:] if lanes else keys.shape, keys.dtype)


def node_keys(keys: jax.Array, paths: tuple[Path, ...], lanes: bool) -> jax.Array:
    """The keys of nodes, shape `(nodes, lanes)`, or `(nodes,)` without lanes."""
    words = np.array([path_words(path) for path in paths], dtype=np.uint32)
    return _derive(keys, words, lanes)


@functools.partial(jax.jit, static_argnums=2)
def _derive(keys: jax.Array, words: Any, lanes: bool) -> jax.Array:
    def derive(key: jax.Array, pair: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1])

    in_lanes = jax.vmap(derive, in_axes=(0, None)) if lanes else derive
    return jax.vmap(in_lanes, in_axes=(None, 0))(keys, words)


def _is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _legacy_shape() -> tuple[int, ...]:
    return jax.random.key_data(jax.random.key(0)).shape


def _show(x: Any) -> str:
    if eqx.is_array(x):
        return f"an array of dtype {x.dtype} and shape {x.shape}"
    return f"{x!r} of type {type(x).__name__}"
