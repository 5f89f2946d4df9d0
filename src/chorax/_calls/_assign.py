"""Loading a state dict, or a saved tree, into a model."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, cast, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from .._text._places import dotted, names_of, Path, place
from .._text._typed import typed
from .._tree._paths import walk


T = TypeVar("T")


@typed(
    "mappings", Mapping, "a mapping from paths to values, as `delta.to_dict()` makes"
)
def assign_state_values(
    target: T, *mappings: Mapping[Any, Any]
) -> tuple[T, list[Any], list[str | Path]]:
    """Puts values into a model by the paths of its leaves.

    The counterpart of `StateDelta.to_dict`, for values whose delta is gone; where the
    delta is at hand use `apply_delta`.

    **Arguments:**

    - `target`: any PyTree. It is left unchanged.
    - `mappings`: from dotted paths (`"layers.0.v"`), or from paths as tuples
        (`("layers", 0, "v")`), to values. Where several name a leaf, the last one wins.
        A mapping, a list or a tuple under a key that names no leaf goes on below it, as
        in what orbax restores: `{"layers": [{"v": ...}]}`, or `{"layers": {"0": ...}}`.
        A `None` in there is no value. One in the model is a place for a value too.
        Shapes are not compared, so that states with a lane axis fit into a model
        without one.

    **Returns:**

    A triple of the new model, the keys that name no leaf of it (as they were given; a
    tuple of them where one was below another), and the dotted paths of its array leaves
    that no key named. Where several leaves share one, each is there by its path as a
    tuple.

    **Raises:** `TypeError` for what is no mapping, `ValueError` for a dotted path that
    several leaves share: give it as a tuple.

    ```python
    >>> import chorax
    >>> import jax.numpy as jnp
    >>> model = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    >>> model, unexpected, missing = chorax.assign_state_values(
    ...     model, {"a": jnp.ones(2), "c": 0.0})
    >>> model["a"].tolist(), unexpected, missing
    ([1.0, 1.0], ['c'], ['b'])

    ```
    """
    # `None` is a place too: with it as a leaf, structure and leaves stay in step.
    leaves, structure = jtu.tree_flatten(target, is_leaf=_is_none)
    places = [path for path, x, is_leaf in walk(target) if is_leaf or x is None]
    by_path = {path: index for index, path in enumerate(places)}
    by_name: dict[str, list[Path]] = {}
    for path in places:
        by_name.setdefault(dotted(path), []).append(path)

    named: set[int] = set()
    unexpected: dict[Any, None] = {}
    pending = _below((), [row for each in mappings for row in each.items()])
    while pending:
        keys, value = pending.pop()
        if value is None and len(keys) > 1:
            continue  # Nothing was saved there.
        found = _find(keys, by_path, by_name)
        rows = _rows(value) if found is None else None
        if rows is not None:
            pending += _below(keys, rows)
        elif found is None:
            unexpected[keys[0] if len(keys) == 1 else keys] = None
        else:
            try:
                leaves[found] = _value(value, leaves[found])
            except Exception as error:
                error.add_note(f"Raised by the value for {place(places[found])}.")
                raise
            named.add(found)
    missing = [
        name
        for index, name in enumerate(names_of(places))
        if index not in named and eqx.is_array(leaves[index])
    ]
    return jtu.tree_unflatten(structure, leaves), list(unexpected), missing


def _below(
    keys: tuple[Any, ...], rows: Iterable[tuple[Any, Any]]
) -> list[tuple[tuple[Any, ...], Any]]:
    """What is under these keys, to be taken from the end."""
    return [((*keys, key), value) for key, value in rows][::-1]


def _rows(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Keys and values of a mapping or a sequence; `None` for all else."""
    if isinstance(value, Mapping):
        return cast(Mapping[Any, Any], value).items()
    if not isinstance(value, list | tuple):
        return None
    items = cast(Iterable[Any], value)
    # A named tuple has names for them.
    names = getattr(items, "_fields", None)
    return enumerate(items) if names is None else zip(names, items, strict=True)


def _find(
    keys: tuple[Any, ...],
    by_path: Mapping[Any, int],
    by_name: Mapping[str, list[Path]],
) -> int | None:
    """The leaf that keys name, each of which goes on below the one before."""
    steps = [cast(Any, key if isinstance(key, tuple) else (key,)) for key in keys]
    path: tuple[Any, ...] = tuple(itertools.chain.from_iterable(steps))
    # A text with a dot may stand for several steps; all else can be told exactly.
    has_dots = any(isinstance(key, str) and "." in key for key in keys)
    if path in by_path and not has_dots:
        return by_path[path]
    found = by_name.get(".".join(map(str, path)), [])
    if len(found) > 1:
        alike = len({tuple(map(str, each)) for each in found}) == 1
        why = "two keys read the same" if alike else "a dictionary key has a dot in it"
        raise ValueError(
            f"{len(found)} leaves have the dotted path {place(found[0])}, because "
            f"{why}: name the leaf by its path as a tuple."
        )
    return by_path[found[0]] if found else None


def _value(new: Any, old: Any) -> Any:
    # A NumPy array out of a file becomes a JAX array, as does a number where an array
    # was; what never was an array stays what it is.
    return jnp.asarray(new) if eqx.is_array(new) or eqx.is_array(old) else new


def _is_none(x: Any) -> bool:
    return x is None
