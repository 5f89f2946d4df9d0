"""Models put together as lanes, and lanes taken apart again."""

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._text._places import place
from .._text._show import shown
from .._text._typed import typed
from .._tree._paths import leaf_paths
from ..filters import Filter
from ._arguments import check_filter, check_positive
from ._lane_axes import columns_of, lane_axes, library_of, named_lane_axes, take_lanes
from ._lane_checks import check_alike, check_mappable, check_same, check_structures


T = TypeVar("T")
if TYPE_CHECKING:
    _AxisSize: TypeAlias = SupportsIndex
else:
    # What is no integer gets an error of ours, whoever checks types.
    _AxisSize = Any


@typed("models", Iterable, "an iterable of models")
def stack(models: Iterable[T], share: Filter = None) -> tuple[T, T]:
    """Puts models together as the lanes of one batched model.

    The counterpart of `unstack`.

    **Arguments:**

    - `models`: at least one model, all of the same structure, static fields and leaves
        that are no arrays, and with arrays of the same shapes and dtypes. Functions of
        the same code are the same, and marks that hold nothing (`eqx.nn.Shared` makes
        some), also if each model has its own.
    - `share`: a filter over leaves (see `chorax.filters`); those it keeps are taken
        from the first model and shared. `None`: nothing is shared.

    **Returns:**

    A pair of the batched model, whose arrays have a lane axis in front, and the tree of
    its lane axes.

    **Raises:** `ValueError` if there is no model, for the first path at which two of
    them differ, or for an array that can't have lanes.

    ```python
    >>> import chorax, equinox as eqx, jax
    >>> models = [eqx.nn.Linear(2, 3, key=jax.random.key(i)) for i in range(4)]
    >>> batched, axes = chorax.lanes.stack(models)
    >>> batched.weight.shape, axes.weight
    ((4, 3, 2), 0)

    ```
    """
    trees = listed(models, "`models` of `stack`")
    if not trees:
        raise ValueError("There is nothing to stack: no models were given.")
    keeps = check_filter(share, "share")
    flat = [jtu.tree_flatten(tree) for tree in trees]
    structure = flat[0][1]
    for index, (_, other) in enumerate(flat):
        check_structures(structure, other, "model 0", f"model {index}")
    leaves: list[Any] = []
    axes: list[int | None] = []
    rows = zip(
        leaf_paths(structure), zip(*(xs for xs, _ in flat), strict=True), strict=True
    )
    for path, column in rows:
        is_shared = not eqx.is_array(column[0]) or keeps(path, column[0])
        if not is_shared:
            check_mappable(column[0], place(path), "`share=`")
        for index, other in enumerate(column[1:], 1):
            check = check_same if is_shared else check_alike
            check(column[0], other, f"{place(path)} of model 0 and model {index}")
        leaves.append(column[0] if is_shared else library_of(column).stack(column))
        axes.append(None if is_shared else 0)
    return jtu.tree_unflatten(structure, leaves), jtu.tree_unflatten(structure, axes)


def unstack(batched: T, axes: Any) -> list[T]:
    """Takes a batched model apart into the models of its lanes.

    **Arguments:**

    - `batched`: a model whose leaves have lane axes.
    - `axes`: which, as for every function of `chorax.lanes`.

    **Returns:**

    A list with one model for each lane. Shared leaves are the same objects in all.

    **Raises:** `ValueError` if nothing tells how many lanes there are, neither a leaf
    nor a delta, if leaves disagree, or if one can't have lanes.

    ```python
    >>> import chorax, equinox as eqx, jax
    >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> batched, delta = chorax.vmap_call_all_fns(
    ...     linear, chorax.reset_parameters, axis_size=4, key=jax.random.key(1))
    >>> [model.weight.shape for model in chorax.lanes.unstack(batched, delta)]
    [(3, 2), (3, 2), (3, 2), (3, 2)]

    ```
    """
    lanes = lane_axes(batched, axes)
    return [take_lanes(lanes, index)[0] for index in range(lanes.size)]


@typed("batches", Iterable, "an iterable of batched models")
def concatenate(batches: Iterable[T], axes: Any) -> T:
    """Puts batched models one after the other along their lanes.

    **Arguments:**

    - `batches`: at least one batched model, all of the same structure; they may have
        different numbers of lanes. Shared leaves are taken from the first.
    - `axes`: as in `unstack`, the same for each.

    **Returns:** a batched model with the same `axes`.

    **Raises:** `ValueError` if there is none, or for the first path at which two
    differ.

    ```python
    >>> import chorax, jax.numpy as jnp
    >>> one, two = {"v": jnp.zeros((2, 3))}, {"v": jnp.ones((1, 3))}
    >>> chorax.lanes.concatenate([one, two], 0)["v"].shape
    (3, 3)

    ```
    """
    trees = listed(batches, "`batches` of `concatenate`")
    if not trees:
        raise ValueError("There is nothing to concatenate: no models were given.")
    for index, tree in enumerate(trees):
        one, other = jtu.tree_structure(trees[0]), jtu.tree_structure(tree)
        check_structures(one, other, "batch 0", f"batch {index}")
    parts = [named_lane_axes(tree, axes, f"batch {i}") for i, tree in enumerate(trees)]
    first = parts[0]
    leaves: list[Any] = []
    for place_, axis, column in columns_of(parts):
        for index, other in enumerate(column[1:], 1):
            where_ = f"{place_} of batch 0 and batch {index}"
            if axis is None:
                check_same(column[0], other, where_)
            else:
                check_alike(column[0], other, where_, axis)
        library = library_of(column)
        leaves.append(column[0] if axis is None else library.concatenate(column, axis))
    return first.rebuild(leaves)


def broadcast(model: T, axis_size: _AxisSize, filter: Filter = ...) -> tuple[T, T]:
    """Gives leaves a lane axis in front, with the same value in every lane.

    **Arguments:**

    - `model`: any PyTree, an `eqx.nn.State` for example.
    - `axis_size`: the number of lanes, a positive integer.
    - `filter`: a filter over leaves; arrays that it keeps get a lane axis. `...`: all.

    **Returns:** a pair of the batched model and the tree of its lane axes.

    **Raises:** `ValueError` if `axis_size` is no positive integer, or for an array that
    can't have lanes.

    ```python
    >>> import chorax, jax.numpy as jnp
    >>> batched, axes = chorax.lanes.broadcast({"v": jnp.ones(2), "w": 0.5}, 3)
    >>> batched["v"].shape, axes
    ((3, 2), {'v': 0, 'w': None})

    ```
    """
    size = check_positive(axis_size, "axis_size", "the number of lanes")
    keeps = check_filter(filter, "filter")
    old, structure = jtu.tree_flatten(model)
    leaves: list[Any] = []
    axes: list[int | None] = []
    for path, x in zip(leaf_paths(structure), old, strict=True):
        gets_lanes = eqx.is_array(x) and keeps(path, x)
        if gets_lanes:
            check_mappable(x, place(path), "`filter=`")
            x = _repeated(x, size)
        leaves.append(x)
        axes.append(0 if gets_lanes else None)
    return jtu.tree_unflatten(structure, leaves), jtu.tree_unflatten(structure, axes)


def listed(models: Iterable[T], name: str) -> list[T]:
    """The models as a list; raises for what yields keys or letters."""
    if isinstance(models, Mapping | str):
        raise TypeError(
            f"{name} must be an iterable of models, but got {shown(models)}. Pass "
            "the models themselves: a list, or the `.values()` of a dictionary."
        )
    return list(models)


def _repeated(x: Any, size: int) -> Any:
    if library_of([x]) is np:
        return np.stack([x] * size)
    return jnp.broadcast_to(x, (size, *x.shape))
