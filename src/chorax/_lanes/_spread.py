"""Where lanes live: along which axis of a mesh of devices."""

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
        front = () if axis is None else (*[None] * axis, self.entry)
        return jax.sharding.PartitionSpec(*front)

    def place(self, x: Any, axis: int | None) -> Any:
        """Lays an array out, and leaves it spread along other axes of the mesh as it
        is; the very same one if it lies so already."""
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
        if not _in_jit(x):
            return _put(x, layout)
        if self.is_auto:
            # There a compiler may overrule `device_put`.
            return cast(Any, jax.lax).with_sharding_constraint(x, layout)
        return cast(Any, jax).device_put(x, layout)

    def replicate(self, x: Any) -> Any:
        """The same for what all devices read. A compiler itself sees to it."""
        return x if self.is_auto and _in_jit(x) else self.place(x, None)

    def lay(self, x: Any, axis: int | None) -> Any:
        """Lays an array out along its lane axis, or on all devices if it has none."""
        if axis is not None:
            return self.place(x, axis)
        # All devices can read what is on the host.
        return self.replicate(x) if isinstance(x, jax.Array) else x

    def _entries(self, x: Any) -> list[Any] | None:
        """How an array lies on this mesh, axis by axis; `None` if it lies elsewhere or
        it is not known."""
        if isinstance(x, jax.core.Tracer):
            # What the compiler lays out is not known; an explicit layout is a type.
            found = None if self.is_auto else getattr(x.aval, "sharding", None)
        else:
            found = getattr(x, "sharding", None)
        if not isinstance(found, jax.sharding.NamedSharding):
            return None
        mesh: Any = found.mesh
        is_same = mesh.shape == self.mesh.shape
        if not isinstance(x, jax.core.Tracer):
            is_same = mesh == self.mesh
        entries: list[Any] = [*found.spec]
        return entries + [None] * (x.ndim - len(entries)) if is_same else None

    def _without(self, entry: Any) -> Any:
        """An entry of a layout without the axes of the lanes."""
        names = [name for name in _names(entry) if name not in self.names]
        return tuple(names) if len(names) > 1 else names[0] if names else None


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
    if isinstance(kind.mesh, jax.sharding.AbstractMesh):
        raise ValueError(
            "`sharding` must be on a mesh of devices, as `jax.make_mesh` makes, but "
            "its mesh is abstract: it says nothing of where lanes live."
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


def without_mesh() -> contextlib.AbstractContextManager[Any]:
    """A scope in which no mesh is set.

    What is traced where a mesh is set does not run on a part of it: each operation
    remembers the mesh. So where devices run apart, all is traced without one.
    """
    none = jax.sharding.AbstractMesh((), ())
    use: Any = getattr(jax.sharding, "use_abstract_mesh", None)
    if use is None:
        # The oldest versions have it in private only. Should it be gone there, calls
        # with `sharding` under a mesh fail again, and no others.
        use = vars(importlib.import_module("jax._src.mesh"))["use_abstract_mesh"]
    return use(none)


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
