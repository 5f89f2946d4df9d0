"""What is remembered between calls.

Tracing a kind runs the user's Python, so its outcome is kept for as long as the same
kind comes again. The memory is bounded, is keyed by values, and keeps no array alive:
of a function, whose closure may hold arrays, it has only a weak reference, and what was
traced with a function goes when the function goes.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Set as AbstractSet
from numbers import Number
from types import FunctionType
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
        if isinstance(part, _WeakFunction):
            part.cells.add(cell)
        elif isinstance(part, tuple):
            pending.extend(cast(Iterable[Any], part))
    return cell


# The cells of kinds, of whole calls, and of what kinds compute, by their keys;
# `TypeError` where a key can't be hashed.
kind_cell = functools.lru_cache(maxsize=1024)(_new_cell)
recipe_cell = functools.lru_cache(maxsize=64)(_new_cell)
computation_cell = functools.lru_cache(maxsize=1024)(_new_cell)


class _WeakFunction(weakref.ref[Any]):
    """Equal for the same living function; empties its cells when the function dies."""

    __slots__ = ("cells",)
    cells: weakref.WeakSet[Cell]

    def __new__(cls, function: Any, callback: Callable[[Any], None]) -> "_WeakFunction":
        self = super().__new__(cls, function, callback)
        self.cells = weakref.WeakSet()
        return self


def _forget(function: _WeakFunction) -> None:
    for cell in function.cells:
        cell.value = None


def fingerprint(value: Any) -> Hashable:
    """A key for a leaf that is no array: equal for values nobody can tell apart.

    Python's own equality is too coarse: `1 == 1.0 == True` and `0.0 == -0.0`.
    """
    if isinstance(value, FunctionType | functools.partial):
        return _WeakFunction(value, _forget)
    if isinstance(value, Number):
        return type(value), repr(value)
    return exact_type(value), value


# Types whose equal values are the same, and that are met most.
_PLAIN = frozenset({int, bool, str, type(None)})


def exact_type(value: object) -> Hashable:
    """What tells apart values that are equal: their types, all the way down."""
    kind = type(value)
    if kind in _PLAIN:
        return kind
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
            types.append(exact_type(data[1:]))
            pending.extend(part.children())
    return structure, tuple(types)


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
