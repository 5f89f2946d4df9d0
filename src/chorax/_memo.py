"""What is remembered between calls.

Tracing a kind runs the user's Python, so its outcome is kept for as long as the same
kind comes again. The memory is bounded, is keyed by values, and keeps no array alive:
of functions and other objects that are equal only to themselves, which may hold arrays,
it has weak references, and what was traced with one of them goes when it goes. Three
things stay until enough else has come: what is static in a structure, as `jax.jit`
keeps it; what a method itself has made that is no array, a closure say; and a function
whose own trace leads back to it, as a rule of `jax.custom_jvp` may.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Set as AbstractSet
from numbers import Number
from types import MethodType
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

    __slots__ = ("cells",)
    cells: list[weakref.ref[Cell]]

    def __new__(cls, value: Any, callback: Callable[[Any], None]) -> "_WeakObject":
        self = super().__new__(cls, value, callback)
        self.cells = []
        return self


def _forget(dead: _WeakObject) -> None:
    # At any time and in any thread: who reads a cell reads it once.
    for reference in dead.cells:
        cell = reference()
        if cell is not None:
            cell.value = None


def fingerprint(value: Any) -> Hashable:
    """A key for a leaf that is no array: equal for values nobody can tell apart.

    Python's own equality is too coarse: `1 == 1.0 == True` and `0.0 == -0.0`.
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type | eqx.Module):
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
