"""Random keys: one per lane, and from it one per node.

A node's key is `fold_in(fold_in(lane_key, high), low)`, where `high` and `low` are the
first two 32-bit words of the SHA-256 of the node's path. It depends on the path alone,
so other nodes and their order change nothing about a node's draws. With 64 bits, two
paths do not collide by accident.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._text._places import Path
from .._text._show import shown
from ._paths import path_words


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["key"],
    meta_fields=["size", "is_split"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class LaneKeys:
    """The keys of all lanes: if `is_split`, `key` has one per lane, otherwise they are
    split from it. `size` is `None` without lanes, where `key` is the only one."""

    key: jax.Array
    size: int | None
    is_split: bool

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """The key as a single lane sees it."""
        shape = self.key.shape[1:] if self.is_split else self.key.shape
        return jax.ShapeDtypeStruct(shape, self.key.dtype)

    @property
    def stacks(self) -> bool:
        """Whether a batch of keys draws the same as each key by itself, as with
        threefry. A batch of `rbg` keys uses only the first of them."""
        one = self.struct
        words = jax.eval_shape(jax.random.key_data, one) if _is_typed(one) else one
        return words.shape == (2,)

    @functools.cached_property
    def array(self) -> jax.Array:
        """The keys, shape `(size,)`, or `()` without lanes."""
        if self.size is None or self.is_split:
            return self.key
        return _split(self.key, self.size)

    def of_node(self, words: Any) -> jax.Array:
        """The keys of one node, shape `(size,)`, or `()` without lanes."""
        if self.size is None:
            return _fold(self.key, words)
        return jax.vmap(_fold, in_axes=(0, None))(self.array, words)

    def of_nodes(self, table: Any) -> jax.Array:
        """The keys of nodes, shape `(size, nodes)`; `(nodes,)` without lanes. `table`
        is a `path_table`."""
        axis = int(self.size is not None)
        if not self.stacks:
            # `unsafe_rbg` would fold in only the first of a batch of paths.
            return jnp.stack([self.of_node(words) for words in table], axis)
        if self.size is None:
            return jax.vmap(_fold, in_axes=(None, 0))(self.key, table)
        keys = self.key if self.is_split else jax.random.split(self.key, self.size)
        # XLA compiles a hash over one axis three times faster than over two.
        shape = (self.size, len(table), *keys.shape[1:])
        flat = jnp.broadcast_to(keys[:, None], shape).reshape(-1, *keys.shape[1:])
        folded = jax.vmap(_fold)(flat, jnp.tile(table, (self.size, 1)))
        return folded.reshape(shape)


def lane_keys(key: Any, size: int | None) -> LaneKeys | None:
    """The keys of all lanes, from the `key` that a user gave."""
    if key is None:
        return None
    if not eqx.is_array(key) or not (_is_typed(key) or key.dtype == np.uint32):
        many = "" if size is None else ", or an array of them, one per lane"
        raise TypeError(
            f"`key` must be a PRNG key, as `jax.random.key(0)` makes{many}; got "
            f"{shown(key)}."
        )
    # A legacy key is an array of words, along its last axis.
    words = _words_of(key)
    if words and key.shape[key.ndim - len(words) :] != words:
        raise ValueError(
            f"`key` must be a PRNG key, of shape {words} if it is a legacy one, or an "
            f"array of keys; got {shown(key)}."
        )
    shape = key.shape[: key.ndim - len(words)]
    array = key if isinstance(key, jax.Array) else jnp.asarray(key)
    if shape == ():
        return LaneKeys(array, size, is_split=False)
    if size is None:
        raise ValueError(
            f"`key` must be one PRNG key, but got an array of them of shape {shape}. "
            "One key per lane is for `vmap_call_all_fns`."
        )
    if shape != (size,):
        raise ValueError(
            "`key` must be one PRNG key or an array of `axis_size` keys, one per lane: "
            f"expected shape ({size},), got {shape}."
        )
    return LaneKeys(array, size, is_split=True)


def check_key(key: Any) -> None:
    """Raises unless it is one PRNG key."""
    if lane_keys(key, None) is None:
        raise TypeError(
            "`key` must be a PRNG key, as `jax.random.key(0)` makes; got `None`."
        )


def path_table(paths: Sequence[Path]) -> Any:
    """The words of paths, shape `(nodes, 2)`."""
    return np.array([path_words(path) for path in paths], dtype=np.uint32)


def _fold(key: jax.Array, pair: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1])


@functools.partial(jax.jit, static_argnums=1)
def _split(key: jax.Array, size: int) -> jax.Array:
    return jax.random.split(key, size)


def _is_typed(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def _words_of(key: Any) -> tuple[int, ...]:
    """The shape of one key: none for a typed key, the words of a legacy key."""
    return () if _is_typed(key) else jax.random.key_data(jax.random.key(0)).shape
