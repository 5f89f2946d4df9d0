"""Lanes selected, chosen between two models, and spread over devices."""

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import jax.sharding
from jax.typing import ArrayLike

from .._text._show import is_array_like
from .._text._typed import typed
from ._arguments import as_array, check_mask
from ._arrays import compute
from ._lane_axes import lane_axes, named_lane_axes, take_lanes
from ._lane_checks import aligned, check_column
from ._spread import check_sharding, split_like


T = TypeVar("T")
if TYPE_CHECKING:
    _Mask: TypeAlias = ArrayLike | Sequence[bool]
else:
    # Anything else is to get chorax's own error, not that of a runtime type checker.
    _Mask = Any


def take(batched: T, axes: Any, index: Any) -> T:
    """Selects lanes.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `index`: an integer, which drops the lane axis; or a slice, a mask of shape
        `(axis_size,)` or indices of shape `(k,)`, which keep it where it is. Indices
        may be traced; JAX then clamps those that are out of range. A mask may not be
        traced, since the number of lanes would be unknown.

    **Returns:** the model of one lane, or a batched model with the same `axes`.

    **Raises:** `IndexError` for an index out of range, `TypeError` for something that
    is not an index, `ValueError` for a mask that is traced or of another shape.

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


def where(mask: _Mask, new: T, old: T, axes: Any) -> T:
    """Chooses lane by lane between two batched models.

    So lanes that are done can start again while the others continue. To call a method
    in some lanes only, see `where` of `vmap_call_all_fns`.

    **Arguments:**

    - `mask`: booleans of shape `(axis_size,)`; may be traced.
    - `new`, `old`: batched models of the same structure. Where `mask` is true, a lane
        is taken from `new`. Shared leaves are taken from `old`.
    - `axes`: as in `unstack`, the same for both.

    **Returns:** a batched model with the same `axes`.

    **Raises:** `ValueError` for the first path at which the two differ in structure,
    shape, dtype or a non-array leaf, and for a mask of another shape.

    ```python
    >>> import chorax, jax.numpy as jnp
    >>> new, old = {"v": jnp.zeros((3, 2))}, {"v": jnp.ones((3, 2))}
    >>> chorax.lanes.where([True, False, True], new, old, 0)["v"].sum(1).tolist()
    [0.0, 2.0, 0.0]

    ```
    """
    names = "`old`", "`new`"
    _, columns = aligned([old, new], names)
    lanes = lane_axes(old, axes)
    named_lane_axes(new, axes, "`new`")
    for (path, column), axis in zip(columns, lanes.axes, strict=True):
        if axis is not None or not is_array_like(column[0]):
            check_column(path, column, names, axis is None)
    check_mask(mask, lanes.size, "mask")
    chosen = as_array(mask)
    leaves = [
        kept
        if axis is None
        else compute(_choose, fresh, kept, by=chosen, mask=chosen, axis=axis)
        for (_, (kept, fresh)), axis in zip(columns, lanes.axes, strict=True)
    ]
    return lanes.rebuild(leaves)


def _choose(library: Any, new: Any, old: Any, mask: Any, axis: int) -> Any:
    shape = [1] * new.ndim
    shape[axis] = mask.size
    mask = mask.reshape(shape)
    if isinstance(old, jax.Array):
        mask = split_like(old, jnp.asarray(mask), axis)
    return library.where(mask, new, old)


@typed(
    "sharding",
    jax.sharding.NamedSharding,
    "a `jax.sharding.NamedSharding`, of a mesh and the name of an axis",
)
def shard(batched: T, axes: Any, sharding: jax.sharding.NamedSharding) -> T:
    """Spreads lanes over the devices of a mesh.

    **Arguments:**

    - `batched`, `axes`: as in `unstack`.
    - `sharding`: a `NamedSharding` whose specification has one entry, the name of the
        mesh axis, or a tuple of names, along which lanes are spread. Shared leaves are
        replicated, except for NumPy arrays, which stay on the host. Layouts along other
        axes of the mesh are kept.

    **Returns:** the model with this layout; leaves that have it already are the same
    objects. A `jax.ShapeDtypeStruct` gets it as its `sharding`.

    **Raises:** `ValueError` for another specification, for an abstract mesh, or if the
    lanes do not divide evenly among the devices.

    To create lanes where they will be used, see `sharding` of `vmap_call_all_fns`.

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
    lanes = lane_axes(batched, axes)
    found = check_sharding(sharding, lanes.size)
    pairs = zip(lanes.leaves, lanes.axes, strict=True)
    # What is shared and on the host can be read from all devices.
    on_devices = jax.Array | jax.ShapeDtypeStruct
    leaves = [
        x if axis is None and not isinstance(x, on_devices) else found.place(x, axis)
        for x, axis in pairs
    ]
    return lanes.rebuild(leaves)
