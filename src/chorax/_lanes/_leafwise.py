"""The inexact arrays with lanes: which of them are trained, and noise for each."""

import functools
from collections.abc import Callable
from typing import Any, cast, TYPE_CHECKING, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.core

from .._text._places import Path, place
from .._text._show import shown
from .._text._typed import typed
from .._tree._holder import AxesHolder
from .._tree._keys import lane_keys, path_table
from .._tree._paths import leaf_paths, walk
from ..filters import Filter, Predicate, WithTag
from ._arguments import check_filter
from ._arrays import ask
from ._lane_axes import lane_axes, LaneAxes
from ._spread import LaneSharding


T = TypeVar("T")
if TYPE_CHECKING:
    _Key: TypeAlias = jax.Array
    _Change: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
else:
    # Anything else gets an error of ours, whatever checks types.
    _Key = _Change = Any


def partition(batched: T, axes: Any, filter: Filter = ...) -> tuple[T, T]:
    """Splits a batched model into what each lane trains and the rest.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `filter`: a filter over leaves (see `chorax.filters`). Where `axes` is a
        `StateDelta`, it sees the delta's tags; pass those of several calls as
        `earlier | later`. `...`: all leaves that can be trained.

    **Returns:**

    A pair of trees with the structure of `batched`, for `eqx.combine` and for optax.
    The first has the inexact arrays that have a lane axis and that `filter` keeps; the
    second has everything else; each has `None` where the other has a leaf.

    A leaf that the delta tags `"hyper"` is never in the first, whatever `filter` says:
    write swept values with `state_tag="hyper"`. Shared leaves are not in it either,
    since lanes that train separately would disagree on them. To train them with one
    loss over all lanes, use `eqx.partition` with `delta.filter_spec` or a filter.

    **Raises:** as `unstack`.

    ```python
    >>> import chorax, equinox as eqx, jax, optax
    >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> batched, delta = chorax.vmap_call_all_fns(
    ...     linear, chorax.reset_parameters, axis_size=4, key=jax.random.key(1))
    >>> bias = chorax.filters.PathContains("bias")
    >>> params, rest = chorax.lanes.partition(batched, delta, bias)
    >>> params.weight, params.bias.shape, rest.weight.shape
    (None, (4, 3), (4, 3, 2))
    >>> state = eqx.filter_vmap(optax.adam(1e-3).init)(params)
    >>> eqx.combine(params, rest).bias is batched.bias
    True

    ```
    """
    lanes = lane_axes(batched, axes)
    keeps = check_filter(filter, "filter") & ~WithTag("hyper")
    kept = set(_kept(lanes, axes, keeps))
    rows = list(enumerate(lanes.leaves))
    return (
        lanes.rebuild([x if index in kept else None for index, x in rows]),
        lanes.rebuild([None if index in kept else x for index, x in rows]),
    )


@typed("fn", Callable, "a function `(key, leaf) -> leaf`")
def perturb(batched: T, axes: Any, key: _Key, fn: _Change, filter: Filter = ...) -> T:
    """Changes leaves at random, with a key for each lane and leaf.

    A leaf's key is made from its lane's key and its path, as that of a node in
    `vmap_call_all_fns`: adding, removing or reordering other leaves changes no draw.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `key`: one PRNG key, which is split into one per lane, or an array of them.
    - `fn`: a function `(key, leaf) -> leaf` of one lane. What it returns has the shape
        and dtype that it is given.
    - `filter`: a filter over leaves, which sees the tags of a `StateDelta`; `fn` is
        called for the inexact arrays with a lane axis that it keeps. `...`: all.

    **Returns:** a batched model with the same `axes`; all other leaves are the same
    objects.

    **Raises:** `ValueError` for a result of another shape or dtype, naming the leaf;
    `TypeError` for what is not a key.

    To perturb some lanes only, choose between both models with `where`.

    ```python
    >>> import chorax, jax, jax.numpy as jnp
    >>> batched, axes = chorax.lanes.broadcast({"w": jnp.ones(2), "n": 3}, 4)
    >>> def noise(key, x):
    ...     return x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
    >>> noisy = chorax.lanes.perturb(batched, axes, jax.random.key(0), noise)
    >>> noisy["w"].shape, len(set(noisy["w"].ravel().tolist())), noisy["n"]
    ((4, 2), 8, 3)

    ```
    """
    lanes = lane_axes(batched, axes)
    keys = lane_keys(key, lanes.size)
    if keys is None:
        raise TypeError("`key` of `perturb` must be a PRNG key, but got `None`.")
    kept = _kept(lanes, axes, check_filter(filter, "filter"))
    if not kept:
        return batched
    paths = leaf_paths(lanes.structure)
    leaf_keys = keys.of_nodes(path_table([paths[index] for index in kept]))
    leaves = list(lanes.leaves)
    # One by one: stacking leaves of equal shape would copy them, and saves little
    # compile time.
    for column, index in enumerate(kept):
        axis = lanes.axes[index]
        change = jax.vmap(_checked(fn, paths[index]), in_axes=(0, axis), out_axes=axis)
        sharded_keys = _sharded_like(leaves[index], axis, leaf_keys[:, column])
        leaves[index] = change(sharded_keys, leaves[index])
    return lanes.rebuild(leaves)


def _kept(lanes: LaneAxes, axes: Any, keeps: Predicate) -> list[int]:
    """The inexact arrays with lanes that a filter keeps, by their indices."""
    tags: dict[Path, frozenset[str]] = {}
    for above, part, _ in walk(axes):
        if isinstance(part, AxesHolder):
            below = part.path_tags.items()
            tags |= {(*above, *path): its_tags for path, its_tags in below}

    def is_kept(path: Path, x: Any) -> bool:
        its_tags = tags.get(path, frozenset())
        return eqx.is_inexact_array(x) and keeps(path, x, its_tags)

    rows = zip(leaf_paths(lanes.structure), lanes.leaves, lanes.axes, strict=True)
    return [
        index
        for index, (path, x, axis) in enumerate(rows)
        if axis is not None and ask(functools.partial(is_kept, path), x)
    ]


def _sharded_like(leaf: Any, axis: Any, keys: jax.Array) -> jax.Array:
    """Keys sharded like the lanes of a leaf, where that is explicit: `jax.vmap` maps
    over both only if they agree."""
    layout: Any = leaf.aval.sharding if isinstance(leaf, jax.Array) else None
    entry = layout.spec[axis] if layout and axis < len(layout.spec) else None
    if entry is None:
        return keys
    is_traced = isinstance(leaf, jax.core.Tracer)
    mesh = layout.mesh if is_traced else cast(Any, leaf).sharding.mesh
    return LaneSharding(mesh, entry).place(keys, 0)


def _checked(fn: _Change, path: Path) -> _Change:
    def change(key: jax.Array, leaf: jax.Array) -> jax.Array:
        try:
            new = cast(Any, fn(key, leaf))
        except Exception as error:
            error.add_note(f"Raised by `fn` of `perturb` at {place(path)}.")
            raise
        given = leaf.shape, leaf.dtype
        if not eqx.is_array(new) or (new.shape, new.dtype) != given:
            raise ValueError(
                "`fn` of `perturb` must return an array of the shape and dtype of the "
                f"leaf, {leaf.dtype}{list(leaf.shape)}, but at {place(path)} it "
                f"returned {shown(new)}."
            )
        return new

    return change
