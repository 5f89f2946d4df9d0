"""Checks of what users pass to select lanes and leaves."""

from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._text._show import short, shown, with_article
from ..filters import Predicate, to_predicate


def check_mask(mask: Any, size: int, name: str) -> jax.Array:
    """A mask of lanes, shape `(size,)`."""
    form = f"a boolean array of shape ({size},), one entry per lane"
    expected = f"`{name}` must be {form}"
    array = as_array(mask)
    if array is None:
        raise TypeError(f"{expected}, but got {shown(mask)}.")
    if array.shape != (size,):
        raise ValueError(f"{expected}, but its shape is {array.shape}.")
    if array.dtype != np.bool_:
        raise TypeError(f"{expected}, but its dtype is {array.dtype}.")
    return jnp.asarray(array)


def as_array(x: Any) -> Any:
    """An array, or a list or tuple of numbers as an array; `None` for anything else."""
    if isinstance(x, jax.Array | np.ndarray):
        return cast(Any, x)
    if not isinstance(x, list | tuple):
        return None
    items = cast("list[Any]", x)
    try:
        is_jax = any(isinstance(item, jax.Array) for item in items)
        return jnp.asarray(items) if is_jax else np.asarray(items)
    except Exception:  # JAX's own message has the `repr`, which may raise anything.
        return None


def check_filter(filter: Any, name: str) -> Predicate:
    """A filter as a predicate; the error says which parameter it was given as."""
    try:
        return to_predicate(filter)
    except TypeError as error:
        error.add_note(f"Given as `{name}`.")
        raise


def bare_entries(filter: Any) -> tuple[str | type, ...]:
    """The entries of a filter that consists of tags and classes only, otherwise none.

    Such a filter is there to match something; a predicate may well match nothing.
    """
    is_several = isinstance(filter, list | tuple)
    entries = tuple(cast("list[Any]", filter if is_several else [filter]))
    is_bare = all(isinstance(entry, str | type) for entry in entries)
    return entries if is_bare else ()


def unmatched(
    name: str,
    entries: Iterable[str | type],
    what: str,
    tags: Iterable[str],
    classes: Iterable[str],
) -> str:
    """The warning for a bare filter that matches nothing, with what there is."""
    wanted = " or ".join(
        f"is tagged {short(entry)}"
        if isinstance(entry, str)
        else f"is {with_article(entry.__name__)}"
        for entry in entries
    )
    known: list[str] = []
    if any(isinstance(entry, str) for entry in entries):
        shown_tags = ", ".join(map(short, sorted(set(tags))))
        known.append(f"tags are {shown_tags}" if shown_tags else "none has a tag")
    if any(isinstance(entry, type) for entry in entries):
        known.append(f"there are {', '.join(dict.fromkeys(classes))}")
    return f"`{name}` matches nothing: no {what} {wanted}; {'; '.join(known)}."


def check_positive(value: Any, name: str, meaning: str, least: int = 1) -> int:
    """An integer of Python or of NumPy, positive or at least `least`."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < least:
        got = "it is missing" if value is None else f"got {shown(value)}"
        kind = "a positive integer" if least else "an integer from 0 on"
        raise ValueError(f"`{name}` must be {kind}, {meaning}, but {got}.")
    return int(cast(int, value))
