"""How lanes are laid out on devices: along which axis of a mesh."""

import contextlib
import dataclasses
import importlib
import math
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import jax.sharding
import numpy as np

from .._text._show import shown
from .._tree._memo import surroundings


@dataclasses.dataclass(frozen=True)
class LaneSharding:
    """The mesh axis, or axes, along which lanes are spread; `entry` is as in a
    `PartitionSpec`."""

    mesh: Any
    entry: Any

    @property
    def names(self) -> tuple[Any, ...]:
        """The names of these axes; empty if lanes are not spread."""
        return _names(self.entry)

    @property
    def parts(self) -> int:
        """The number of devices that lanes are divided among."""
        return math.prod(self.mesh.shape[name] for name in self.names)

    @property
    def is_auto(self) -> bool:
        """Whether the compiler decides the layout along every axis of the mesh."""
        auto = cast(Any, jax.sharding).AxisType.Auto
        return all(kind == auto for kind in self.mesh.axis_types)

    def spec(self, axis: int | None) -> jax.sharding.PartitionSpec:
        """The layout of an array with this lane axis; without one it is replicated."""
        front = () if axis is None else (*[None] * axis, self.entry)
        return jax.sharding.PartitionSpec(*front)

    def place(self, x: Any, axis: int | None) -> Any:
        """Lays an array out, keeping its layout along other axes of the mesh; returns
        the same object if it has this layout already."""
        found = self._entries(x)
        wanted = [self._without(entry) for entry in found or [None] * x.ndim]
        if axis is not None:
            wanted[axis] = self.entry
        if wanted == found:
            return x
        while wanted and wanted[-1] is None:
            wanted.pop()
        spec = jax.sharding.PartitionSpec(*wanted)
        layout = jax.sharding.NamedSharding(self.mesh, spec)
        if isinstance(x, jax.ShapeDtypeStruct):
            rest: Any = {"sharding": layout, "weak_type": x.weak_type}
            return jax.ShapeDtypeStruct(x.shape, x.dtype, **rest)
        if not _in_jit(x):
            return _put(x, layout)
        if self.is_auto:
            # There the compiler may overrule `device_put`.
            return cast(Any, jax.lax).with_sharding_constraint(x, layout)
        return cast(Any, jax).device_put(x, layout)

    def replicate(self, x: Any) -> Any:
        """Replicates an array, unless the compiler does so anyway."""
        return x if self.is_auto and _in_jit(x) else self.place(x, None)

    def lay(self, x: Any, axis: int | None) -> Any:
        """Lays an array out along its lane axis, or on all devices if it has none."""
        if axis is not None:
            return self.place(x, axis)
        # All devices can read what is on the host.
        return self.replicate(x) if isinstance(x, jax.Array) else x

    def _entries(self, x: Any) -> list[Any] | None:
        """The layout of an array on this mesh, axis by axis; `None` if it is on another
        mesh or unknown."""
        is_traced = isinstance(x, jax.core.Tracer)
        if is_traced and self.is_auto:
            return None  # Only the compiler knows.
        found = getattr(x.aval if is_traced else x, "sharding", None)
        if not isinstance(found, jax.sharding.NamedSharding):
            return None
        # While tracing, meshes are abstract.
        mesh: Any = found.mesh.shape if is_traced else found.mesh
        if mesh != (self.mesh.shape if is_traced else self.mesh):
            return None
        entries: list[Any] = [*found.spec]
        return entries + [None] * (x.ndim - len(entries))

    def _without(self, entry: Any) -> Any:
        """An entry of a layout without the mesh axes of the lanes."""
        names = [name for name in _names(entry) if name not in self.names]
        return tuple(names) if len(names) > 1 else names[0] if names else None


def check_sharding(sharding: Any, size: int) -> LaneSharding:
    """The layout of so many lanes that a user gave as `sharding`."""
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
    if isinstance(kind.mesh, jax.sharding.AbstractMesh):
        raise ValueError(
            "`sharding` must be on a mesh of devices, as `jax.make_mesh` makes, but "
            "its mesh is abstract: it names no devices."
        )
    if not all(name in kind.mesh.shape for name in found.names):
        raise ValueError(
            "`sharding` must name the mesh axis of the lanes, but its specification is "
            f"{kind.spec}."
        )
    if size % found.parts:
        raise ValueError(
            f"{size} lanes do not divide evenly among the {found.parts} devices along "
            f"{found.entry!r} of the mesh. Use a multiple of {found.parts} lanes."
        )
    return found


def split_like(lane: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """An array split along an axis as another one is by explicit axes of a mesh. JAX
    refuses to combine arrays whose explicit axes differ."""
    wanted, found = (cast(Any, array).aval.sharding for array in (lane, x))
    entries: list[Any] = [None] * x.ndim
    entries[axis] = wanted.spec[axis] if axis < len(wanted.spec) else None
    is_known = isinstance(cast(Any, x), jax.core.Tracer) or found.mesh == wanted.mesh
    if entries[axis] is None or not is_known or any(found.spec):
        return x
    spec = jax.sharding.PartitionSpec(*entries)
    layout = jax.sharding.NamedSharding(wanted.mesh, spec)
    axes = range(x.ndim)
    return cast(Any, jax).lax.broadcast_in_dim(x, x.shape, axes, out_sharding=layout)


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """A scope in which no mesh is set.

    Operations that are traced under a mesh remember it, and do not run on a part of it.
    So what each device runs by itself is traced without a mesh.
    """
    none = jax.sharding.AbstractMesh((), ())
    use: Any = getattr(jax.sharding, "use_abstract_mesh", None)
    if use is None:
        # In the oldest supported versions it is private. Without it, only calls with
        # `sharding` under a mesh would fail.
        use = vars(importlib.import_module("jax._src.mesh"))["use_abstract_mesh"]
    return use(none)


def _in_jit(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer) or surroundings()[1]


def _put(x: Any, layout: Any) -> Any:
    if layout.is_fully_addressable:
        return cast(Any, jax).device_put(x, layout)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=layout)(x)
    # Every process has the whole array, and gives its own devices their parts.
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
