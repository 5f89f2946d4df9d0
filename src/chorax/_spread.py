"""Where lanes live: along which axis of a mesh of devices."""

import dataclasses
import math
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import jax.sharding
import numpy as np

from ._memo import surroundings
from ._show import shown


@dataclasses.dataclass(frozen=True)
class LaneSharding:
    """The axis of a mesh along which lanes lie, or several of them; `entry` is as in a
    `PartitionSpec`."""

    mesh: Any
    entry: Any

    @property
    def names(self) -> tuple[Any, ...]:
        """The names of the axes, none where lanes are not spread."""
        return _names(self.entry)

    @property
    def parts(self) -> int:
        """Among how many devices the lanes are divided."""
        return math.prod(self.mesh.shape[name] for name in self.names)

    @property
    def is_auto(self) -> bool:
        """Whether it is the compiler that lays arrays out along all of the mesh."""
        auto = cast(Any, jax.sharding).AxisType.Auto
        return all(kind == auto for kind in self.mesh.axis_types)

    def spec(self, axis: int | None) -> jax.sharding.PartitionSpec:
        """How an array with this lane axis lies; one without it is on all devices."""
        return jax.sharding.PartitionSpec(
            *(() if axis is None else (*[None] * axis, self.entry))
        )

    def layout(self, axis: int | None) -> jax.sharding.NamedSharding:
        """The same, as a sharding."""
        return jax.sharding.NamedSharding(self.mesh, self.spec(axis))

    def place(self, x: Any, axis: int | None) -> Any:
        """Lays an array out; the very same one if it lies so already, however it is
        spread along other axes of the mesh."""
        if self._lies_so(x, axis):
            return x
        if not _in_jit(x):
            return _put(x, self.layout(axis))
        if self.is_auto:
            # There a compiler may overrule `device_put`.
            return cast(Any, jax.lax).with_sharding_constraint(x, self.layout(axis))
        return cast(Any, jax).device_put(x, self.layout(axis))

    def replicate(self, x: Any) -> Any:
        """The same for what all devices read. A compiler itself sees to it."""
        return x if self.is_auto and _in_jit(x) else self.place(x, None)

    def _lies_so(self, x: Any, axis: int | None) -> bool:
        if isinstance(x, jax.core.Tracer):
            # What the compiler lays out is not known; an explicit layout is a type.
            found = None if self.is_auto else getattr(x.aval, "sharding", None)
        else:
            found = getattr(x, "sharding", None)
        if not isinstance(found, jax.sharding.NamedSharding):
            return False
        mesh: Any = found.mesh
        if not isinstance(x, jax.core.Tracer) and mesh != self.mesh:
            return False
        if mesh.shape != self.mesh.shape:
            return False
        entries: list[Any] = [*found.spec]
        own = [entries.pop(axis)] if axis is not None and axis < len(entries) else []
        if axis is not None and self.names and own != [self.entry]:
            return False
        used = {name for each in entries for name in _names(each)}
        return used.isdisjoint(self.names)


def check_sharding(sharding: Any, size: int) -> LaneSharding:
    """Where so many lanes are to live, as a user gave it."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        raise TypeError(
            "`sharding` must be a `jax.sharding.NamedSharding`, of a mesh and the name "
            f"of an axis, but got {shown(sharding)}."
        )
    kind: Any = sharding
    if len(kind.spec) != 1:
        raise ValueError(
            "`sharding` must have a specification of one entry, the mesh axis of the "
            f"lanes, but has {kind.spec}."
        )
    found = LaneSharding(kind.mesh, kind.spec[0])
    if size % found.parts:
        raise ValueError(
            f"{size} lanes do not divide evenly among the {found.parts} devices along "
            f"{found.entry!r} of the mesh. Use a multiple of {found.parts} lanes."
        )
    return found


def _in_jit(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer) or surroundings()[1]


def _put(x: Any, layout: Any) -> Any:
    if layout.is_fully_addressable:
        return cast(Any, jax).device_put(x, layout)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=layout)(x)
    # Every process has all of it, and gives its own devices their parts.
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(x), layout)
        wrap = cast(Any, jax).random.wrap_key_data
        return wrap(words, impl=jax.random.key_impl(x))
    host: Any = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    make = cast(Any, jax).make_array_from_callback
    return make(host.shape, layout, host.__getitem__)


def _same(x: jax.Array) -> jax.Array:
    return x


def _names(entry: Any) -> tuple[Any, ...]:
    if entry is None:
        return ()
    return cast("tuple[Any, ...]", entry) if isinstance(entry, tuple) else (entry,)
