"""Kinds: nodes that a method can't tell apart by anything but their arrays' values.

A kind is traced once, at the level of one lane, and what comes of it says all that the
rest needs to know: the computation, which inputs it reads, and for each leaf of the
returned node whether it is a leaf that was there before (the very object), a new array
or a constant.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast, TypeAlias, TypeGuard

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from ._memo import exact_structure, fingerprint
from ._paths import Path, place


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The lanes of a batched call, as `jax.vmap` takes them."""

    size: int
    axis_name: Hashable = None
    spmd_axis_name: Any = None
    chunk_size: int | None = None


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """An array as one lane sees it, and the axis along which the lanes lie.

    `host` is the type of a NumPy scalar, and the dtype of a NumPy array that JAX would
    change: what the leaf is for as long as nobody writes it.
    """

    struct: jax.ShapeDtypeStruct
    axis: int | None
    host: Hashable = None

    @property
    def token(self) -> Hashable:
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class StaticSpec:
    """A leaf that is no array: part of the program, not of its input."""

    value: Any

    @property
    def token(self) -> Hashable:
        return fingerprint(self.value)


Spec: TypeAlias = ArraySpec | StaticSpec


def spec_of(leaf: Any, axis: int | None) -> Spec:
    """What a trace has to know of a leaf."""
    if not eqx.is_array(leaf):
        return StaticSpec(leaf)
    try:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    except TypeError:
        return StaticSpec(leaf)  # A NumPy array of strings, say.
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
    return ArraySpec(struct, axis, host)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What all nodes of a collective call share.

    `name` is the method's name, or `None` where a function is applied to the nodes; the
    function is then the first of `arguments`, a structure of `(function, args,
    kwargs)`. `key` is the key of one lane.
    """

    label: str
    name: str | None
    arguments: jtu.PyTreeDef
    specs: tuple[Spec, ...]
    key: jax.ShapeDtypeStruct | None
    has_aux: bool
    lanes: Lanes | None
    # Whether extra leading axes are a stack of modules to the function, as they are to
    # `reset_parameters`.
    admits_stacks: bool = False
    # What else decides what a trace comes to, such as the rules of a dispatcher.
    extra: Hashable = None

    @property
    def token(self) -> Hashable:
        # The number of lanes is seen by a method only through a named axis.
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
    lane of the collective call sees, with the lanes of those ensembles.
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
        definition = fingerprint(self.definition)
        return structure, specs, definition, self.gets_key, self.levels


@dataclasses.dataclass(frozen=True)
class Kept:
    """A leaf of the result that is the node's leaf at this index, the very object."""

    index: int


@dataclasses.dataclass(frozen=True)
class New:
    """A leaf of the result that is the output of the computation at this index."""

    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A leaf of the result that is no array."""

    value: Any


Origin: TypeAlias = Kept | New | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Where every leaf of a returned node, and of its `aux`, comes from.

    `reaches_inside` is whether the call changed a module within the node.
    """

    structure: jtu.PyTreeDef
    origins: tuple[Origin, ...]
    aux_structure: jtu.PyTreeDef
    aux_origins: tuple[Origin, ...]
    reaches_inside: bool


def innermost(spec: Spec, axes: Sequence[int | None]) -> Spec:
    """What one lane of all ensembles around sees of a leaf, given its lane axes."""
    if not isinstance(spec, ArraySpec):
        return spec
    shape = list(spec.struct.shape)
    for axis in axes:
        if axis is not None:
            del shape[axis]
    weak = spec.struct.weak_type
    struct = jax.ShapeDtypeStruct(tuple(shape), spec.struct.dtype, weak_type=weak)
    return ArraySpec(struct, spec.axis, spec.host)


def call_lane(
    kind: Kind, call: Call, inputs: Sequence[Any], path: Path
) -> tuple[list[Any], Outcome]:
    """Calls the method once, for one node in one lane; returns new arrays and outcome.

    `inputs` are the arrays of the node, those of the arguments, and the key if the
    method gets one. Inside of ensembles it is called once for all of their lanes, each
    with a key of its own, and new arrays get a lane axis for each ensemble.
    """
    is_array = [isinstance(spec, ArraySpec) for spec in kind.specs]
    count = sum(is_array)
    shared, key = list(inputs[count:]), None
    if kind.gets_key:
        key = shared.pop()
    outcome: Outcome | None = None

    def once(arrays: Sequence[Any], key: Any) -> tuple[Any, ...]:
        nonlocal outcome
        rest = shared if key is None else [*shared, key]
        news, outcome = _call_once(kind, call, [*arrays, *rest], path)
        return tuple(news)

    run: Callable[[Sequence[Any], Any], tuple[Any, ...]] = once
    for level in reversed(kind.levels):
        pairs = zip(level.axes, is_array, strict=True)
        run = _over_level(run, level.size, [axis for axis, is_one in pairs if is_one])
    news = list(run(inputs[:count], key))
    assert outcome is not None
    return news, outcome


def _over_level(
    run: Callable[[Sequence[Any], Any], tuple[Any, ...]],
    size: int,
    axes: list[int | None],
) -> Callable[[Sequence[Any], Any], tuple[Any, ...]]:
    def over(arrays: Sequence[Any], key: Any) -> tuple[Any, ...]:
        keys = None if key is None else jax.random.split(key, size)
        in_axes = (axes, None if key is None else 0)
        return jax.vmap(run, in_axes, 0, axis_size=size)(list(arrays), keys)

    return over


def _call_once(
    kind: Kind, call: Call, inputs: Sequence[Any], path: Path
) -> tuple[list[Any], Outcome]:
    arrays = iter(inputs)
    leaves = [_fill(spec, arrays) for spec in kind.specs]
    node = jtu.tree_unflatten(kind.structure, leaves)
    arguments = [_fill(spec, arrays) for spec in call.specs]
    function, args, kwargs = jtu.tree_unflatten(call.arguments, arguments)
    if kind.gets_key:
        kwargs = {**kwargs, "key": next(arrays)}
    where = f"`{call.label}` of {type(node).__name__} at {place(path)}"
    try:
        if call.name is None:
            result = function(node, *args, **kwargs)
        else:
            result = getattr(node, call.name)(*args, **kwargs)
    except Exception as error:
        error.add_note(f"Raised by {where}, in a collective call of chorax.")
        raise
    aux = None
    if call.has_aux:
        if not _is_pair(result):
            raise TypeError(
                f"{where} must return `(node, aux)`, since `has_aux=True`, but "
                f"returned {_name(result)}."
            )
        result, aux = result
    _check_result(result, node, where, call.has_aux)

    news: list[Any] = []
    out, structure = jtu.tree_flatten(result)
    aux_out, aux_structure = jtu.tree_flatten(aux)
    _check_static(structure, where)
    places: dict[int, list[int]] = {}
    for index, leaf in enumerate(leaves):
        places.setdefault(id(leaf), []).append(index)

    def origin(position: int, leaf: Any) -> Origin:
        found = places.get(id(leaf))
        if found is not None:
            return Kept(position if position in found else found[0])
        if isinstance(spec_of(leaf, None), StaticSpec):
            return Constant(leaf)
        news.append(jnp.asarray(leaf))
        return New(len(news) - 1)

    origins = tuple(origin(i, leaf) for i, leaf in enumerate(out))
    aux_origins = tuple(origin(-1, leaf) for leaf in aux_out)
    reaches_inside = _inside(result) != _inside(node)
    return news, Outcome(structure, origins, aux_structure, aux_origins, reaches_inside)


def _inside(node: Any) -> list[tuple[Any, jtu.PyTreeDef, list[int]]]:
    """The outermost modules within a node: where, and by the identity of leaves."""

    def is_inside(x: Any) -> bool:
        return isinstance(x, eqx.Module) and x is not node

    rows = cast(
        "list[tuple[tuple[Any, ...], Any]]",
        # JAX types the keys of a path by a type variable that nothing binds.
        jtu.tree_leaves_with_path(node, is_leaf=is_inside),  # pyright: ignore[reportUnknownMemberType]
    )
    flat = [(path, *jtu.tree_flatten(x)) for path, x in rows if is_inside(x)]
    return [(path, structure, [id(x) for x in xs]) for path, xs, structure in flat]


def _fill(spec: Spec, arrays: Any) -> Any:
    if isinstance(spec, ArraySpec):
        return next(arrays)
    if type(spec.value) is float and math.isfinite(spec.value):
        # A copy of its own: a method that returns an equal constant has written it, a
        # method that returns this object has not, whichever node stands for the kind.
        return float(repr(spec.value))
    return spec.value


def _check_result(result: Any, node: Any, where: str, has_aux: bool) -> None:
    expected = f"a {type(node).__name__}"
    if type(result) is type(node):
        return
    cure = "Return the updated node, or `return self` if nothing changes."
    if not has_aux and _is_pair(result):
        cure = f"{cure} To return `(node, aux)`, pass `has_aux=True`."
    raise TypeError(
        f"{where} must return {expected}, but returned {_name(result)}. {cure}"
    )


def _is_pair(x: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(x, tuple) and len(cast(tuple[Any, ...], x)) == 2


def _check_static(structure: jtu.PyTreeDef, where: str) -> None:
    pending: list[Any] = [structure]
    while pending:
        part = pending.pop()
        if isinstance(part, jax.core.Tracer):
            raise TypeError(
                f"{where} put a traced array into a static field. Static fields are "
                "part of the program; declare the field without `static=True`."
            )
        if isinstance(part, jtu.PyTreeDef):
            data = part.node_data()
            if data is not None:
                pending.extend([*data[1:], *part.children()])
        elif isinstance(part, tuple | list):
            pending.extend(cast(Sequence[Any], part))
        elif isinstance(part, Mapping):
            pending.extend(cast(Mapping[Any, Any], part).values())


def _name(x: Any) -> str:
    return "`None`" if x is None else f"a {type(x).__name__}"
