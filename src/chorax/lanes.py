"""Lanes taken apart and put together.

Each function takes `axes`: the `StateDelta` of the call that made the batched model, or
a tree of lane axes, in any form that `eqx.filter_vmap` takes as `in_axes`. Leaves
without a lane axis are shared by all lanes. All of it works inside `jit`, `grad`,
`vmap` and `scan`. NumPy's arrays stay what they are, with dtypes that JAX would change;
but what is put together with an array of JAX, or taken or chosen by a traced one,
becomes one of JAX. Arrays that JAX does not take, of strings say, have no lanes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.sharding
import jax.tree_util as jtu
import numpy as np
from jax.typing import ArrayLike

from ._checks import check_filter, check_lanes
from ._ensemble import Ensemble as Ensemble
from ._lane_axes import lane_axes, LaneAxes, library_of, take_lanes
from ._lane_checks import check_alike, check_mappable, check_same, check_structures
from ._mask import as_array, check_mask
from ._paths import leaf_paths
from ._places import place
from ._show import shown
from ._spread import check_sharding
from ._typed import check_type
from .filters import Filter


T = TypeVar("T")
if TYPE_CHECKING:
    AxisSize: TypeAlias = SupportsIndex
    Mask: TypeAlias = ArrayLike | Sequence[bool]
else:
    # What is neither gets an error of ours, whoever checks types.
    AxisSize = Mask = Any


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
    trees = _listed(models, "`models` of `stack`", "models")
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


def take(batched: T, axes: Any, index: Any) -> T:
    """Picks lanes.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `index`: an integer, which drops the lane axis; or a slice, a mask of shape
        `(axis_size,)` or indices of shape `(k,)`, which keep it where it is. Indices
        may be traced; one out of range is then clamped, as JAX does. A mask may not:
        how many lanes it keeps would not be known.

    **Returns:** the model of one lane, or a batched model with the same `axes`.

    **Raises:** `IndexError` for an index out of range, `TypeError` for what is no
    index, `ValueError` for a mask of another shape or a traced one.

    ```python
    >>> import chorax, jax.numpy as jnp
    >>> batched = {"v": jnp.arange(8.0).reshape(4, 2), "w": jnp.ones(2)}
    >>> axes = {"v": 0, "w": None}
    >>> chorax.lanes.take(batched, axes, -1)["v"].tolist()
    [6.0, 7.0]
    >>> chorax.lanes.take(batched, axes, [2, 0, 2])["v"].shape
    (3, 2)

    ```
    """
    return take_lanes(lane_axes(batched, axes), index)[0]


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
    trees = _listed(batches, "`batches` of `concatenate`", "batched models")
    if not trees:
        raise ValueError("There is nothing to concatenate: no models were given.")
    for index, tree in enumerate(trees):
        one, other = jtu.tree_structure(trees[0]), jtu.tree_structure(tree)
        check_structures(one, other, "batch 0", f"batch {index}")
    parts = [_apart(tree, axes, f"batch {i}") for i, tree in enumerate(trees)]
    first = parts[0]
    leaves: list[Any] = []
    for place_, axis, column in _columns(parts):
        for index, other in enumerate(column[1:], 1):
            where_ = f"{place_} of batch 0 and batch {index}"
            if axis is None:
                check_same(column[0], other, where_)
            else:
                check_alike(column[0], other, where_, axis)
        library = library_of(column)
        leaves.append(column[0] if axis is None else library.concatenate(column, axis))
    return first.rebuild(leaves)


def where(mask: Mask, new: T, old: T, axes: Any) -> T:
    """Chooses lane by lane between two batched models.

    With it the lanes that are done begin anew, and the others go on. To call a method
    in some lanes only, see the keyword `where` of `vmap_call_all_fns`.

    **Arguments:**

    - `mask`: booleans of shape `(axis_size,)`; may be traced.
    - `new`, `old`: batched models of the same structure; lanes are those of `new` where
        `mask` is true. A shared leaf can't be chosen by lanes: it is that of `old`.
    - `axes`: as in `unstack`, the same for both.

    **Returns:** a batched model with the same `axes`.

    **Raises:** `ValueError` for the first path at which the two differ in structure,
    shape, dtype or in a leaf that is no array, and for a mask of another shape.

    ```python
    >>> import chorax, jax.numpy as jnp
    >>> new, old = {"v": jnp.zeros((3, 2))}, {"v": jnp.ones((3, 2))}
    >>> chorax.lanes.where([True, False, True], new, old, 0)["v"].sum(1).tolist()
    [0.0, 2.0, 0.0]

    ```
    """
    structures = jtu.tree_structure(old), jtu.tree_structure(new)
    check_structures(*structures, "`old`", "`new`")
    before, after = lane_axes(old, axes), _apart(new, axes, "`new`")
    columns = list(_columns([before, after]))
    for place_, axis, (kept, fresh) in columns:
        where_ = f"{place_} of `old` and `new`"
        if axis is not None:
            check_alike(kept, fresh, where_)
        elif not eqx.is_array(kept):
            check_same(kept, fresh, where_)
    check_mask(mask, before.size, "mask")
    chosen = as_array(mask)
    leaves: list[Any] = []
    for _, axis, (kept, fresh) in columns:
        if axis is None:
            leaves.append(kept)
            continue
        shape = [1] * kept.ndim
        shape[axis] = before.size
        library = library_of([fresh, kept], chosen)
        leaves.append(library.where(chosen.reshape(shape), fresh, kept))
    return before.rebuild(leaves)


def broadcast(model: T, axis_size: AxisSize, filter: Filter = ...) -> tuple[T, T]:
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
    size = check_lanes(axis_size).size
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


def shard(batched: T, axes: Any, sharding: jax.sharding.NamedSharding) -> T:
    """Spreads lanes over the devices of a mesh.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `sharding`: a `NamedSharding` whose specification has one entry, the name of the
        mesh axis (or a tuple of names) along which the lanes lie. Shared leaves are on
        all of its devices, those of NumPy on the host. What is spread along other axes
        of the mesh stays so.

    **Returns:** the same model, laid out so; what lies so already is the same object.

    **Raises:** `ValueError` for another specification, for an abstract mesh, or if the
    lanes do not divide evenly among the devices.

    To make lanes where they are to live, see `sharding` of `vmap_call_all_fns`.

    ```python
    >>> import chorax, jax, jax.numpy as jnp
    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> mesh = jax.make_mesh((1,), ("lanes",))
    >>> sharding = NamedSharding(mesh, PartitionSpec("lanes"))
    >>> batched = chorax.lanes.shard({"v": jnp.ones((4, 2))}, 0, sharding)
    >>> batched["v"].sharding.spec == PartitionSpec("lanes")
    True

    ```
    """
    words = "a `jax.sharding.NamedSharding`, of a mesh and the name of an axis"
    check_type(sharding, jax.sharding.NamedSharding, "`sharding` of `shard`", words)
    lanes = lane_axes(batched, axes)
    found = check_sharding(sharding, lanes.size)
    pairs = zip(lanes.leaves, lanes.axes, strict=True)
    return lanes.rebuild(
        # What is shared and on the host is at hand for all devices.
        [
            x if axis is None and not isinstance(x, jax.Array) else found.place(x, axis)
            for x, axis in pairs
        ]
    )


def _listed(models: Iterable[T], name: str, words: str) -> list[T]:
    check_type(models, Iterable, name, f"an iterable of {words}")
    # To iterate over these gives keys and letters.
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


def _apart(batched: Any, axes: Any, name: str) -> LaneAxes:
    try:
        return lane_axes(batched, axes)
    except Exception as error:
        error.add_note(f"Raised by {name}.")
        raise


def _columns(parts: Sequence[LaneAxes]) -> Iterable[tuple[str, int | None, list[Any]]]:
    """For each leaf where it stands, its lane axis, and its value in every part."""
    first = parts[0]
    paths = leaf_paths(first.structure)
    columns = zip(*(part.leaves for part in parts), strict=True)
    for path, axis, column in zip(paths, first.axes, columns, strict=True):
        yield place(path), axis, list(column)
