"""What is remembered between calls.

Tracing a kind runs the user's Python, so its outcome is kept for as long as the same
kind comes again. The memory is bounded, is keyed by values, and keeps no array alive:
of functions and other objects that are equal only to themselves, which may hold arrays,
it has weak references, and what was traced with one of them is dropped with it. Three
things stay until enough else has come: what is static in a structure, as `jax.jit`
keeps it; what a method itself has made that is no array, a closure say; and a function
whose own trace leads back to it, as a rule of `jax.custom_jvp` may.
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
    """A place for one remembered value."""

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


# The cells of kinds and of whole calls, by their keys; `TypeError` where a key can't be
# hashed.
kind_cell = functools.lru_cache(maxsize=1024)(_new_cell)
recipe_cell = functools.lru_cache(maxsize=64)(_new_cell)


class _WeakObject(weakref.ref[Any]):
    """Equal for the same living object; empties its cells when the object dies."""

    __slots__ = ("cells", "number")
    cells: list[weakref.ref[Cell]]
    number: int

    def __new__(cls, value: Any, callback: Callable[[Any], None]) -> "_WeakObject":
        self = super().__new__(cls, value, callback)
        self.cells, self.number = [], id(value)
        return self

    # Not by what its object makes of them: an array has no hash.
    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        value = self()
        return value is not None and isinstance(other, _WeakObject) and other() is value

    def __hash__(self) -> int:
        return self.number


class _Strong:
    """The same for what can't be referred to weakly: numbers, tuples, lists."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Strong) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _forget(dead: _WeakObject) -> None:
    # At any time and in any thread: who reads a cell reads it once.
    for reference in dead.cells:
        cell = reference()
        if cell is not None:
            cell.value = None


def fingerprint(value: Any) -> Hashable:
    """A key for what is no array, equal where it makes two calls the same.

    Two calls are the same where `eqx.filter_jit` takes them to be: arrays go by shape,
    dtype and weak type, all else by Python's `==`. Besides, values go by their types,
    and numbers by their signs, inside of tuples, mappings, dataclasses and modules too:
    `1 == 1.0 == True` and `0.0 == -0.0`. Methods and rules go by their code as well
    (`code_token`), arrays by where they are (`ArraySpec`), and all of it by JAX's own
    settings (`surroundings`). Filters are asked in every call.
    """
    kind = cast("type[Any]", type(value))
    if isinstance(value, Number):
        return kind, repr(value)
    if isinstance(value, MethodType):
        # A new object each time that it is looked up.
        return kind, fingerprint(value.__self__), fingerprint(value.__func__)
    if kind.__eq__ is object.__eq__ and kind.__weakrefoffset__:
        return _WeakObject(value, _forget)
    return exact_type(value), value


def code_token(function: Any) -> Hashable:
    """What tells whether a method or a rule is still the same: the function itself,
    seen through wrappers, with the code, defaults and closure that it has now, and the
    rules of a dispatcher. What it calls is not looked at."""
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
            if each.__defaults__ or each.__kwdefaults__:
                held = *(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()
                parts += map(_identity, held)
            if each.__closure__:
                parts += [_identity(content_of(cell)) for cell in each.__closure__]
            if not each.__dict__:
                continue
        pending.append(_wrapped(each))
        rules = getattr(each, "registry", None)
        if isinstance(rules, Mapping):
            # A copy, made at one go: another thread may be adding a rule.
            rules = cast("dict[Any, Any]", cast(Any, rules).copy())
            parts += rules
            pending += rules.values()
    return tuple(parts)


# Where the wrappers of Python keep what they wrap.
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
    """What a closure has in one of its places."""
    try:
        return cell.cell_contents
    except ValueError:
        return None  # Nothing was put into it so far.


# Types whose equal values are the same, and that are met most.
_PLAIN = frozenset({int, bool, str, type(None)})


def exact_type(value: object) -> Hashable:
    """What tells apart values that are equal: their types, all the way down.

    `TypeError` for what can't be hashed: it may be another value by the next call.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind
    hash(value)
    if isinstance(value, np.ndarray | jax.Array):
        # Equal only element by element, and not to be kept alive.
        raise TypeError("An array can't be a part of a key.")
    if isinstance(value, Number):
        # Zeros of either sign are equal, and so are decimals of other precision.
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
    """A structure with the types of its static parts, which its own `==` ignores."""
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
    """The types of a module's static fields alone: what Equinox's wrappers have from
    the functions that they wrap, dictionaries of annotations too, tells nothing more.
    """
    module = jtu.tree_unflatten(structure, [None] * structure.num_leaves)
    if not isinstance(module, eqx.Module):
        raise TypeError("Something static can't be hashed.")
    names = static_fields(type(module))
    return tuple(exact_type(getattr(module, name, None)) for name in names)


@functools.lru_cache(maxsize=1024)
def static_fields(cls: Any) -> tuple[str, ...]:
    """The names of a module's static fields."""
    fields = dataclasses.fields(cls)
    return tuple(f.name for f in fields if f.metadata.get("static", False))


def surroundings() -> tuple[object, bool]:
    """An object that is the same wherever a trace would come out the same, and whether
    something is being traced.

    JAX traces depend on more than their arguments: on precision and promotion settings,
    on the named axes in scope, on the mesh. `jax.jit` knows all of it, and traces anew
    when any of it changes; so the mark that it made while tracing stands for the lot.
    """
    mark = _mark()
    return mark.value, isinstance(mark.probe, jax.core.Tracer)


class _Mark(eqx.Module):
    probe: jax.Array
    value: object = eqx.field(static=True)


@jax.jit
def _mark() -> _Mark:
    return _Mark(jnp.zeros(()), object())
