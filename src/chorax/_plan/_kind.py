"""Kinds: nodes that differ in nothing but the values of their arrays.

A kind is traced once, for one lane, and the trace says everything that the rest needs
to know: the computation, which inputs it reads, and for each leaf of the returned node
whether it is a leaf that was there before (the same object), a new array or a constant.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, cast, TypeAlias

import equinox as eqx
import jax
import jax.core
import jax.sharding
import jax.tree_util as jtu
import numpy as np

from .._lanes._axes import is_foreign
from .._lanes._spread import LaneSharding
from .._tree._memo import code_token, exact_structure, fingerprint


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The lanes of a batched call, as `jax.vmap` takes them, and where they live."""

    size: int
    axis_name: Hashable = None
    spmd_axis_name: Any = None
    chunk_size: int | None = None
    sharding: LaneSharding | None = None
    is_one_program: bool = False

    @property
    def runs_per_device(self) -> bool:
        """Whether each device runs a program for its own lanes, which never meet those
        of others. Over a named axis they may meet: then the compiler spreads one
        program over all devices, as it does where `is_one_program`."""
        is_named = self.axis_name is not None or self.spmd_axis_name is not None
        is_spread = self.sharding is not None and bool(self.sharding.names)
        return is_spread and not is_named and not self.is_one_program

    def on_device(self) -> "Lanes":
        """The lanes that a program sees."""
        size = self.size
        if self.runs_per_device and self.sharding is not None:
            size //= self.sharding.parts
        return dataclasses.replace(self, size=size, sharding=None)


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array as one lane sees it, and whether it has a lane axis.

    `host` is the type of a NumPy scalar, or the dtype of a NumPy array that JAX would
    change: what the leaf is as long as nobody writes it. `place` is where it is, if its
    user has said so: arrays in different places are not stacked.
    """

    struct: jax.ShapeDtypeStruct
    has_lanes: bool
    host: Hashable = None
    place: Hashable = None

    @property
    def token(self) -> Hashable:
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class StaticSpec:
    """A non-array leaf: part of the program, not of its input."""

    value: Any

    @property
    def token(self) -> Hashable:
        return fingerprint(self.value)


Spec: TypeAlias = ArraySpec | StaticSpec


def spec_of(leaf: Any, axis: int | None) -> Spec:
    """What a trace has to know about a leaf."""
    if not eqx.is_array(leaf):
        return StaticSpec(leaf)
    if is_foreign(leaf):
        return StaticSpec(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    shape = list(leaf.shape)
    if axis is not None:
        del shape[axis]
    weak = bool(getattr(leaf, "weak_type", False))
    host: Hashable = None
    if isinstance(leaf, np.generic):
        host = cast(Any, leaf).__class__
    elif isinstance(leaf, np.ndarray) and cast(Any, leaf).dtype != dtype:
        host = cast(Any, leaf).dtype
    struct = jax.ShapeDtypeStruct(tuple(shape), dtype, weak_type=weak)
    return ArraySpec(struct, axis is not None, host, place_of(leaf))


def place_of(leaf: Any) -> Hashable:
    """The device or layout of an array; `None` where JAX may choose. While tracing,
    only an explicit layout is known, which is a part of the type."""
    if not isinstance(leaf, jax.Array):
        return None
    if isinstance(leaf, jax.core.Tracer):
        found: Any = getattr(leaf.aval, "sharding", None)
        return (
            None if found is None or not any(found.spec) else (found.mesh, found.spec)
        )
    if not cast(Any, leaf).committed:
        return None
    found = leaf.sharding
    if not isinstance(found, jax.sharding.NamedSharding):
        return found
    rest = (None,) * (leaf.ndim - len(found.spec))
    return cast(Any, found).mesh, (*found.spec, *rest), found.memory_kind


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What all nodes of a collective call share.

    `name` is the method's name, or `None` where a function is applied to the nodes.
    `arguments` is the structure of `(function, args, kwargs)`, and `key` is the key of
    one lane.
    """

    label: str
    name: str | None
    arguments: jtu.PyTreeDef
    specs: tuple[Spec, ...]
    key: jax.ShapeDtypeStruct | None
    has_aux: bool
    lanes: Lanes | None
    # Whether the function takes extra leading axes for a stack of modules, as
    # `reset_parameters` does.
    admits_stacks: bool = False
    # What else a trace depends on, such as the rules of a dispatcher.
    extra: Hashable = None

    @property
    def token(self) -> Hashable:
        # A method sees the number of lanes only through a named axis.
        named = None
        if self.lanes is not None and self.lanes.axis_name is not None:
            named = (self.lanes.axis_name, self.lanes.size)
        specs = tuple(spec.token for spec in self.specs)
        structure = exact_structure(self.arguments)
        return self.name, structure, specs, self.key, self.has_aux, named, self.extra


@dataclasses.dataclass(frozen=True)
class Level:
    """The lanes of an ensemble around a node: their axis for each leaf of the node."""

    size: int
    axes: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A node without the values of its arrays, and the method called on it.

    `levels` are the ensembles around it, the outermost first. The specs are what one
    lane of the collective call sees, the lane axes of those ensembles included.
    """

    structure: jtu.PyTreeDef
    specs: tuple[Spec, ...]
    definition: Any
    gets_key: bool
    levels: tuple[Level, ...] = ()

    @property
    def name(self) -> str:
        """The name of the class."""
        data = self.structure.node_data()
        return "" if data is None else data[0].__name__

    @property
    def token(self) -> Hashable:
        specs = tuple(spec.token for spec in self.specs)
        structure = exact_structure(self.structure)
        definition = code_token(self.definition)
        return structure, specs, definition, self.gets_key, self.levels


@dataclasses.dataclass(frozen=True)
class Kept:
    """A leaf of the result that is the node's leaf at this index, the same object."""

    index: int


@dataclasses.dataclass(frozen=True)
class New:
    """A leaf of the result that is the output of the computation at this index."""

    index: int


# Where a leaf of the result comes from; a `StaticSpec` is a non-array leaf.
Origin: TypeAlias = Kept | New | StaticSpec


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Where every leaf of a returned node, and of its `aux`, comes from.

    `is_fixed` is whether nothing that the call wrote can be changed in place. `levels`
    has, for each leaf, its lane axes in the ensembles around the node.
    """

    structure: jtu.PyTreeDef
    origins: tuple[Origin, ...]
    aux_structure: jtu.PyTreeDef
    aux_origins: tuple[Origin, ...]
    is_fixed: bool
    levels: tuple[tuple[int | None, ...], ...] = ()


def innermost(spec: Spec, axes: Sequence[int | None]) -> Spec:
    """What one lane of all surrounding ensembles sees of a leaf with these axes."""
    if not isinstance(spec, ArraySpec):
        return spec
    shape = list(spec.struct.shape)
    for axis in axes:
        if axis is not None:
            del shape[axis]
    weak = spec.struct.weak_type
    struct = jax.ShapeDtypeStruct(tuple(shape), spec.struct.dtype, weak_type=weak)
    return dataclasses.replace(spec, struct=struct)
