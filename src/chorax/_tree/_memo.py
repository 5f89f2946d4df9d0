"""What makes two calls the same, and what is remembered between calls.

Two calls are the same if they are for `eqx.filter_jit`, and types of numbers exactly:

- arrays by shape, dtype, weak type and placement (`ArraySpec`);
- all other values by type and `==`, numbers by sign too, also inside tuples, mappings,
  dataclasses and modules: `1`, `1.0` and `True` differ, and so do `0.0` and `-0.0`
  (`fingerprint`, `exact_structure`);
- objects without an `==` of their own by identity;
- methods and rules by their code, seen through wrappers, but not by what they call
  (`code_token`);
- JAX's settings that affect a trace (`surroundings`).

Filters are asked in every call.

Tracing a kind runs the user's Python, so the outcome is kept for the next call of the
same kind. The memory is bounded, keyed by values, and keeps no array alive: functions
and other objects that are equal only to themselves may hold arrays, so they are
referenced weakly, and when one dies, whatever was traced with it is dropped. Three
things may stay until they are evicted: static parts of a structure, as in `jax.jit`;
non-array values that a method created, such as closures; and a function that its own
trace leads back to, as a rule of `jax.custom_jvp` may be.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Set as AbstractSet
from numbers import Number
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np


class Cell:
    """Holds one remembered value."""

    __slots__ = ("__weakref__", "value")

    def __init__(self) -> None:
        self.value: Any = None


def _new_cell(key: object) -> Cell:
    cell = Cell()
    pending = [key]
    while pending:
        part = pending.pop()
        if isinstance(part, _WeakObject):
            part.cells.append(weakref.ref(cell))
        elif isinstance(part, tuple):
            pending.extend(cast(Iterable[Any], part))
    return cell


# The cells of kinds and of whole calls, by key; `TypeError` if a key can't be hashed.
kind_cell = functools.lru_cache(maxsize=1024)(_new_cell)
recipe_cell = functools.lru_cache(maxsize=64)(_new_cell)


class _WeakObject(weakref.ref[Any]):
    """Equal for the same living object; clears its cells when the object dies."""

    __slots__ = ("cells", "number")
    cells: list[weakref.ref[Cell]]
    number: int

    def __new__(cls, value: Any, callback: Callable[[Any], None]) -> "_WeakObject":
        self = super().__new__(cls, value, callback)
        self.cells, self.number = [], id(value)
        return self

    # Not the object's own `==` and hash: an array has no hash.
    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        value = self()
        return value is not None and isinstance(other, _WeakObject) and other() is value

    def __hash__(self) -> int:
        return self.number


class _Strong:
    """As `_WeakObject`, for objects without weak references, such as numbers."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Strong) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _forget(dead: _WeakObject) -> None:
    # This runs at any time and in any thread, so a cell is to be read only once.
    for reference in dead.cells:
        cell = reference()
        if cell is not None:
            cell.value = None


def fingerprint(value: Any) -> Hashable:
    """A key for a value that is not an array, equal for values that are the same."""
    kind = cast("type[Any]", type(value))
    if isinstance(value, Number):
        return kind, repr(value)
    if isinstance(value, MethodType):
        # A new object each time it is looked up.
        return kind, fingerprint(value.__self__), fingerprint(value.__func__)
    if kind.__eq__ is object.__eq__ and kind.__weakrefoffset__:
        return _WeakObject(value, _forget)
    return exact_type(value), value


def code_token(function: Any) -> Hashable:
    """A key for a method or a rule: the function, with its current code, defaults and
    closure, whatever it wraps, and the rules of a dispatcher, but not what it calls."""
    parts: list[Hashable] = []
    seen = {id(None)}
    pending: list[Any] = [function]
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        parts.append(_identity(each))
        if isinstance(each, FunctionType):
            parts += [each.__code__, each.__dict__.get("call_order")]
            held = *(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()
            parts += map(_identity, held)
            parts += [_identity(content_of(cell)) for cell in each.__closure__ or ()]
            if not each.__dict__:
                continue
        pending.append(_wrapped(each))
        rules = getattr(each, "registry", None)
        if isinstance(rules, Mapping):
            # An atomic copy: another thread may be adding a rule.
            rules = cast("dict[Any, Any]", cast(Any, rules).copy())
            parts += rules
            pending += rules.values()
    return tuple(parts)


# The attributes in which Python's wrappers keep what they wrap.
_WRAPPERS: Mapping[type, str] = {
    functools.partial: "func",
    functools.partialmethod: "func",
    functools.cached_property: "func",
    functools.singledispatchmethod: "dispatcher",
    staticmethod: "__func__",
    classmethod: "__func__",
    MethodType: "__func__",
    property: "fget",
}


def _wrapped(function: Any) -> Any:
    kind = cast("type[Any]", type(function))
    return getattr(function, _WRAPPERS.get(kind, "__wrapped__"), None)


def _identity(value: Any) -> Hashable:
    if cast("type[Any]", type(value)).__weakrefoffset__:
        return _WeakObject(value, _forget)
    return _Strong(value)


def content_of(cell: CellType) -> Any:
    """The value in one cell of a closure, `None` if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


# Frequent types whose equal values are the same.
_PLAIN = frozenset({int, bool, str, type(None)})


def exact_type(value: object) -> Hashable:
    """What distinguishes equal values: their types, all the way down.

    Raises `TypeError` for a value that can't be hashed, since it may change.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind
    hash(value)
    if isinstance(value, np.ndarray | jax.Array):
        # It is compared element by element, and must not be kept alive.
        raise TypeError("An array can't be a part of a key.")
    if isinstance(value, Number):
        # `0.0 == -0.0`, and decimals of different precision are equal.
        return kind, repr(value)
    if isinstance(value, list | tuple):
        return kind, tuple(map(exact_type, cast(Iterable[object], value)))
    if isinstance(value, Mapping):
        rows = cast(Mapping[object, object], value).items()
        return kind, tuple((exact_type(k), exact_type(v)) for k, v in rows)
    if isinstance(value, AbstractSet):
        members = cast(AbstractSet[Hashable], value)
        return kind, frozenset((exact_type(x), x) for x in members)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return kind, tuple(exact_type(getattr(value, name, None)) for name in names)
    return kind


def exact_structure(structure: jtu.PyTreeDef) -> Hashable:
    """A structure with the types of its static parts, which `==` ignores."""
    types: list[Hashable] = []
    pending = [structure]
    while pending:
        part = pending.pop()
        data = part.node_data()
        if data is not None:
            # JAX keeps the keys of a dictionary as a list.
            static = tuple(data[1]) if data[0] is dict else data[1]
            try:
                types.append(exact_type(static))
            except TypeError:
                types.append(_exact_fields(part))
            pending.extend(part.children())
    return structure, tuple(types)


def _exact_fields(structure: jtu.PyTreeDef) -> Hashable:
    """The types of a module's static fields. Equinox's wrappers copy more from the
    functions they wrap, such as annotations, which can't be hashed and are not needed.
    """
    module = jtu.tree_unflatten(structure, [None] * structure.num_leaves)
    if not isinstance(module, eqx.Module):
        raise TypeError("A static part can't be hashed.")
    names = static_fields(type(module))
    return tuple(exact_type(getattr(module, name, None)) for name in names)


@functools.lru_cache(maxsize=1024)
def static_fields(cls: Any) -> tuple[str, ...]:
    """The names of a module's static fields."""
    fields = dataclasses.fields(cls)
    return tuple(f.name for f in fields if f.metadata.get("static", False))


def surroundings() -> tuple[object, bool]:
    """An object that is the same as long as JAX's settings are, and whether something
    is being traced.

    JAX traces depend on more than their arguments: on precision and promotion settings,
    on the named axes in scope, on the mesh. `jax.jit` traces again when any of these
    changes, so an object that it creates while tracing stands for all of them.
    """
    mark = _mark()
    return mark.value, isinstance(mark.probe, jax.core.Tracer)


class _Mark(eqx.Module):
    probe: jax.Array
    value: object = eqx.field(static=True)


@jax.jit
def _mark() -> _Mark:
    return _Mark(jnp.zeros(()), object())
