"""What a method writes into a node besides arrays: static fields, functions, objects.

Nodes of a kind, and later calls, share what was written while the first was traced.
That is right for what nobody can change in place, and wrong for what holds a traced
array, which is of no use once the trace is over.
"""

import dataclasses
import enum
import functools
import operator
from collections.abc import Iterator, Mapping, Set as AbstractSet
from numbers import Number
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np

from .._tree._memo import content_of, static_fields


_FIXED = (
    type(None),
    type(Ellipsis),
    Number,
    str,
    bytes,
    range,
    type,
    enum.Enum,
    ModuleType,
    BuiltinFunctionType,
    np.ufunc,
    np.dtype,
    jax.Array,
)
# Containers that hold only their children, and keys.
_PLAIN = (type(None), list, tuple, dict)
# Fixed if everything that they hold is.
_SHELLS = (tuple, frozenset, FunctionType, MethodType, functools.partial)


def statics(tree: Any) -> Iterator[Any]:
    """The values of static fields, and what other containers hold besides children."""
    parts: list[Any] = []
    # `is_leaf` is asked about every container and leaf, and `append` returns `None`.
    jtu.tree_flatten(tree, is_leaf=cast(Any, parts.append))
    for part in parts:
        if isinstance(part, eqx.Module):
            # The rest of what its wrappers hold is made anew each time.
            names = static_fields(type(part))
            yield from (getattr(part, name, None) for name in names)
        elif type(part) not in _PLAIN and not jtu.all_leaves([part]):
            is_below = functools.partial(operator.is_not, part)
            data = jtu.tree_structure(part, is_leaf=is_below).node_data()
            yield from _flat(None if data is None else data[1])


def _flat(kept: Any) -> Iterator[Any]:
    # The list itself is made anew each time, unlike what is in it.
    if isinstance(kept, tuple | list):
        for part in cast("list[Any]", kept):
            yield from _flat(part)
    else:
        yield kept


def held_by(value: Any) -> Iterator[Any]:
    """Everything that a value holds, itself first, except what Python modules and
    classes hold."""
    seen: dict[int, Any] = {}
    pending = [value]
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen[id(part)] = part  # Kept alive, so that no other object gets its id.
            yield part
            pending.extend(_inside(part))


def is_fixed(value: Any) -> bool:
    """Whether nothing that a value holds can be changed in place, as far as known."""
    return all(map(_is_fixed, held_by(value)))


def _is_fixed(part: Any) -> bool:
    kind = cast("type[Any]", type(part))
    if isinstance(part, (*_FIXED, *_SHELLS)) or kind is object:
        return True
    if dataclasses.is_dataclass(kind):
        return cast(Any, kind).__dataclass_params__.frozen
    return _is_plumbing(part)


def _is_plumbing(part: Any) -> bool:
    """Structures, layouts, markers, wrapped functions: nobody changes them."""
    kind = cast("type[Any]", type(part))
    package = kind.__module__.partition(".")[0]
    is_theirs = package in ("jax", "jaxlib", "equinox")
    return is_theirs and not isinstance(part, eqx.Module)


def _inside(part: Any) -> Iterator[Any]:
    if isinstance(part, _FIXED):
        return
    if isinstance(part, list | tuple | AbstractSet):
        yield from cast("list[Any]", part)
    elif isinstance(part, Mapping):
        for pair in cast("Mapping[Any, Any]", part).items():
            yield from pair
    elif isinstance(part, FunctionType):
        yield from part.__defaults__ or ()
        yield from (part.__kwdefaults__ or {}).values()
        yield from map(content_of, part.__closure__ or ())
    elif isinstance(part, functools.partial):
        partial = cast("functools.partial[Any]", part)
        yield from (partial.func, *partial.args, *partial.keywords.values())
    elif isinstance(part, MethodType):
        yield from (part.__self__, part.__func__)
    elif _is_plumbing(part):
        yield getattr(part, "__wrapped__", None)
        return
    yield from getattr(cast(Any, part), "__dict__", {}).values()
