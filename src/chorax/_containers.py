"""What hints say that are none of jaxtyping's: classes, containers and generics."""

import typing
from collections.abc import Collection, Mapping
from typing import Any, cast, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._hints import Hint, hinted_fields, is_record, mentions_variable
from ._nodes import is_tied
from ._places import Key


# Where an item stands in its container, the item, and the hint that speaks of it.
Item: TypeAlias = tuple[Key, Any, Hint]

# What a number becomes under `jax.jit`.
_KINDS: dict[Any, Any] = {
    bool: jnp.bool_,
    int: jnp.integer,
    float: jnp.floating,
    complex: jnp.complexfloating,
}


def admits(form: Any, value: Any) -> bool:
    """Whether a hint that is none of jaxtyping's lets a value pass."""
    if form is None:
        form = type(None)
    if typing.get_origin(form) is typing.Literal:
        return not eqx.is_array(value) and value in typing.get_args(form)
    if not isinstance(form, type) or form is object:
        return True
    if isinstance(value, jax.Array | np.ndarray):
        if issubclass(form, jax.Array | np.ndarray):
            return True  # A lane does not tell one kind of array from another.
        if form in _KINDS:
            array = cast(Any, value)
            return array.shape == () and jnp.issubdtype(array.dtype, _KINDS[form])
    try:
        return isinstance(value, form)
    except Exception:
        return True  # Its author's class can't be asked.


def items_of(value: Any, hint: Hint) -> list[Item] | None:
    """What a value of a generic class holds; `None` if it does not hold so many.

    Nothing is known of what the parameters of somebody's own class mean, unless it is a
    dataclass, a `NamedTuple` or a module.
    """
    origin: Any = typing.get_origin(hint.form)
    parts = hint.parts()
    if is_record(origin) or issubclass(origin, eqx.Module):
        # A module's other fields are checked when it is called itself.
        return [
            (field.name, getattr(value, field.name), field.hint)
            for field in hinted_fields(cast("type[Any]", origin), parts)
            if mentions_variable(field.hint) and is_set(value, field.name)
        ]
    if origin.__module__ not in ("builtins", "collections", "collections.abc"):
        return []
    if issubclass(origin, tuple):
        return _items_of_tuple(value, parts)
    if issubclass(origin, Mapping):
        pairs = value.items() if len(parts) == 2 else ()
        return [
            (k if isinstance(k, str | int) else str(k), x, parts[1]) for k, x in pairs
        ]
    # What is no collection, a generator say, would be used up by a look.
    is_collection = isinstance(value, Collection) and not eqx.is_array(value)
    if len(parts) != 1 or not is_collection:
        return []
    items = enumerate(cast(Collection[Any], value))
    return [(index, item, parts[0]) for index, item in items]


def is_set(owner: Any, name: str) -> bool:
    """Whether a field has a value; not where `eqx.nn.Shared` has taken it away."""
    try:
        value = getattr(owner, name)
    except AttributeError:
        return False
    return not is_tied(value)


def _items_of_tuple(value: Any, parts: list[Hint]) -> list[Item] | None:
    if len(parts) == 2 and parts[1].form is ...:
        parts = parts[:1] * len(value)
    if any(typing.get_origin(part.form) is typing.Unpack for part in parts):
        return []
    if len(parts) != len(value):
        return None
    pairs = enumerate(zip(value, parts, strict=True))
    return [(index, item, part) for index, (item, part) in pairs]
