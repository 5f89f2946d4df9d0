"""Models stacked as lanes, and unstacked again."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias, TypeVar

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._text._places import place
from .._text._show import is_array_like, shown
from .._text._typed import typed
from .._tree._paths import leaf_paths
from ..filters import Filter
from ._arguments import check_filter, check_positive
from ._arrays import ask, compute
from ._lane_axes import lane_axes, named_lane_axes, take_lanes
from ._lane_checks import aligned, check_column, check_mappable


T = TypeVar("T")
if TYPE_CHECKING:
    _AxisSize: TypeAlias = SupportsIndex
else:
    # Anything else is to get chorax's own error, not that of a runtime type checker.
    _AxisSize = Any


@typed("models", Iterable, "an iterable of models")
def stack(models: Iterable[T], share: Filter = None) -> tuple[T, T]:
    """Stacks models as the lanes of one batched model; `unstack` is the inverse.

    **Arguments:**

    - `models`: at least one model. All have the same structure, static fields and
        non-array leaves, and arrays of the same shapes and dtypes. Functions with the
        same code count as the same, and so do markers that hold nothing, such as those
        of `eqx.nn.Shared`, even if each model has one of its own.
    - `share`: a filter over leaves (see `chorax.filters`). Leaves that it keeps are
        taken from the first model and shared. `None`: nothing is shared.

    **Returns:**

    A pair of the batched model, whose arrays have lane axis 0, and the tree of its lane
    axes.

    **Raises:** `ValueError` if there is no model, for the first path at which two
    models differ, or for an array that can't have lanes.

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
    names = [f"model {index}" for index in range(len(trees))]
    structure, columns = aligned(trees, names)
    leaves: list[Any] = []
    axes: list[int | None] = []
    for path, column in columns:
        one = column[0]
        is_shared = not is_array_like(one) or ask(functools.partial(keeps, path), one)
        if not is_shared:
            check_mappable(one, place(path), "`share=`")
        check_column(path, column, names, is_shared)
        leaves.append(one if is_shared else compute(_stacked, *column))
        axes.append(None if is_shared else 0)
    return jtu.tree_unflatten(structure, leaves), jtu.tree_unflatten(structure, axes)


def unstack(batched: T, axes: Any) -> list[T]:
    """Splits a batched model into one model per lane; the inverse of `stack`.

    **Arguments:**

    - `batched`: a model whose leaves have lane axes.
    - `axes`: these axes: a `StateDelta`, or a tree as `eqx.filter_vmap` takes for
        `in_axes`.

    **Returns:**

    A list with one model per lane. Shared leaves are the same objects in all of them.

    **Raises:** `ValueError` if neither a leaf nor a delta says how many lanes there
    are, if leaves have different numbers of lanes, or if one can't have lanes.

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
    """Concatenates batched models along their lane axes.

    **Arguments:**

    - `batches`: at least one batched model. All have the same structure; they may have
        different numbers of lanes. Shared leaves are taken from the first.
    - `axes`: as in `unstack`, the same for all.

    **Returns:** a batched model with the same `axes`.

    **Raises:** `ValueError` if there is no model, or for the first path at which two
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
    names = [f"batch {index}" for index in range(len(trees))]
    _, columns = aligned(trees, names)
    first, *_ = map(named_lane_axes, trees, [axes] * len(trees), names)
    leaves: list[Any] = []
    for (path, column), axis in zip(columns, first.axes, strict=True):
        is_shared = axis is None
        check_column(path, column, names, is_shared, axis)
        joined = column[0] if is_shared else compute(_joined, *column, axis=axis)
        leaves.append(joined)
    return first.rebuild(leaves)


def broadcast(model: T, axis_size: _AxisSize, filter: Filter = ...) -> tuple[T, T]:
    """Gives leaves lane axis 0, with the same value in every lane.

    **Arguments:**

    - `model`: any PyTree, such as an `eqx.nn.State`.
    - `axis_size`: the number of lanes, a positive integer.
    - `filter`: a filter over leaves. Arrays that it keeps get a lane axis. `...`: all.

    **Returns:** a pair of the batched model and the tree of its lane axes.

    **Raises:** `ValueError` if `axis_size` is not a positive integer, or for an array
    that can't have lanes.

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
        gets_lanes = is_array_like(x) and ask(functools.partial(keeps, path), x)
        if gets_lanes:
            check_mappable(x, place(path), "`filter=`")
            x = compute(_repeated, x, size=size)
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


def _stacked(library: Any, *arrays: Any) -> Any:
    return library.stack(arrays)


def _joined(library: Any, *arrays: Any, axis: int) -> Any:
    return library.concatenate(arrays, axis)


def _repeated(library: Any, x: Any, size: int) -> Any:
    if library is np:
        return np.stack([x] * size)
    return jnp.broadcast_to(x, (size, *x.shape))
