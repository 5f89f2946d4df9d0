"""Loading a state dict, or a saved tree, into a model."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._text._places import dotted, names_of, Path, place
from .._text._show import shown
from .._text._typed import typed
from .._tree._holder import LaneHolder
from .._tree._paths import walk


T = TypeVar("T")
# Kinds of numbers, each of which holds those before it.
_KINDS = (np.bool_, np.integer, np.floating, np.complexfloating)


@typed(
    "mappings", Mapping, "a mapping from paths to values, as `delta.to_dict()` makes"
)
def assign_state_values(
    target: T, *mappings: Mapping[Any, Any], check: bool = True
) -> tuple[T, list[Any], list[str | Path]]:
    """Puts values into a model by the paths of its leaves.

    The counterpart of `StateDelta.to_dict`, for values that come without their delta,
    such as a checkpoint. With a delta, use `apply_delta`.

    **Arguments:**

    - `target`: any PyTree; it is left unchanged. Its arrays may be
        `jax.ShapeDtypeStruct`s, as `eqx.filter_eval_shape` makes them.
    - `mappings`: from dotted paths (`"layers.0.v"`), or from paths as tuples
        (`("layers", 0, "v")`), to values. Where several name a leaf, the last one wins.
        A mapping, a list or a tuple under a key that names no leaf continues the path,
        as in what orbax restores: `{"layers": [{"v": ...}]}`, or
        `{"layers": {"0": ...}}`. A `None` inside such a mapping is not a value, but a
        `None` in the model is a place for one.
    - `check`: whether each value has to fit. Where the model has an array, a value of
        its dtype fits that has its shape, or one more axis in front: a state with lanes
        for a model without. Python numbers, and lists of them, take the dtype of the
        array. Where the model has `None` or a non-array, any value fits. Inside an
        `Ensemble`, an array that changes the shape of a leaf fits only if the axes of
        the `Ensemble` map that leaf; otherwise its lanes would share the value.
        `False`: every value is taken.

    The lane axes of a plain batched model are known only to its delta, which does not
    fit the model any more once a value adds an axis to a shared leaf.

    **Returns:**

    A triple of the new model, the keys that name none of its leaves (as they were
    given; a tuple of them for nested ones), and the dotted paths of its array leaves
    that no key named. Where several leaves have the same dotted path, each is listed by
    its path as a tuple.

    **Raises:** `TypeError` for an argument that is not a mapping; `ValueError` for a
    value that does not fit, and for a dotted path that several leaves have: pass it as
    a tuple.

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
    # `None` has a place of its own, so it has to be a leaf here.
    leaves, structure = jtu.tree_flatten(target, is_leaf=lambda x: x is None)
    rows = list(walk(target))
    places = [path for path, x, is_leaf in rows if is_leaf or x is None]
    ensembles = {path: x for path, x, _ in rows if isinstance(x, LaneHolder)}
    values, unexpected = _find_values(places, mappings)
    for index, value in values.items():
        path, old = places[index], leaves[index]
        try:
            leaves[index] = _as_leaf(value, old)
        except (TypeError, ValueError) as error:
            # JAX makes no array of it.
            if check and _has_shape(old):
                raise ValueError(
                    f"The value for {place(path)} does not fit: it is {shown(value)}, "
                    f"but the model has {_form(old)} there. Pass a value of that dtype "
                    "and shape; or pass `check=False` to take all values as they are."
                ) from error
            leaves[index] = value
        if check:
            _check_fit(leaves[index], old, path, ensembles)
    missing = [
        name
        for index, name in enumerate(names_of(places))
        if index not in values and _has_shape(leaves[index])
    ]
    return jtu.tree_unflatten(structure, leaves), unexpected, missing


def _find_values(
    places: Sequence[Path], mappings: Iterable[Mapping[Any, Any]]
) -> tuple[dict[int, Any], list[Any]]:
    """The value for each place that is named, and the keys that name no place."""
    by_path = {path: index for index, path in enumerate(places)}
    by_name: dict[str, list[Path]] = {}
    for path in places:
        by_name.setdefault(dotted(path), []).append(path)
    values: dict[int, Any] = {}
    unexpected: dict[Any, None] = {}
    pending = _below((), [row for each in mappings for row in each.items()])
    while pending:
        keys, value = pending.pop()
        if value is None and len(keys) > 1:
            continue  # Nothing was saved there.
        found = _find(keys, by_path, by_name)
        rows = _rows(value) if found is None else None
        if found is not None:
            values[found] = value
        elif rows is not None:
            pending += _below(keys, rows)
        else:
            unexpected[keys[0] if len(keys) == 1 else keys] = None
    return values, list(unexpected)


def _below(
    keys: tuple[Any, ...], rows: Iterable[tuple[Any, Any]]
) -> list[tuple[tuple[Any, ...], Any]]:
    """The rows under these keys, last ones first: they are popped from the end."""
    return [((*keys, key), value) for key, value in rows][::-1]


def _rows(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Keys and values of a mapping or a sequence; `None` for anything else."""
    if isinstance(value, Mapping):
        return cast(Mapping[Any, Any], value).items()
    if not isinstance(value, list | tuple):
        return None
    items = cast(Iterable[Any], value)
    # The keys of a named tuple are the names of its fields.
    names = getattr(items, "_fields", None)
    return enumerate(items) if names is None else zip(names, items, strict=True)


def _find(
    keys: tuple[Any, ...],
    by_path: Mapping[Any, int],
    by_name: Mapping[str, list[Path]],
) -> int | None:
    """The index of the leaf that nested keys name."""
    steps = [cast(Any, key if isinstance(key, tuple) else (key,)) for key in keys]
    path: tuple[Any, ...] = tuple(itertools.chain.from_iterable(steps))
    # A string with a dot may stand for several steps; all other keys are exact.
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


def _as_leaf(new: Any, old: Any) -> Any:
    """Makes a value a leaf like the one it replaces.

    NumPy arrays, as files hold them, become JAX arrays. So do numbers that replace an
    array, with its dtype if that can hold their kind. Other values stay as they are.
    """
    is_number = not _has_shape(new)
    if isinstance(new, jax.ShapeDtypeStruct) and not eqx.is_array(old):
        return new
    if is_number and not _has_shape(old):
        return new
    array = jnp.asarray(new)
    if is_number and _kind(array) <= _kind(old):
        return jnp.asarray(new, _dtype(old))
    return array


def _check_fit(
    new: Any, old: Any, path: Path, ensembles: Mapping[Path, LaneHolder]
) -> None:
    """Raises for an array that does not fit where `old` was."""
    if not _has_shape(new):
        return
    text = f"The value for {place(path)} does not fit: it is {_form(new)}"
    if _has_shape(old):
        dtype = _dtype(old)
        if new.dtype != dtype or old.shape not in (new.shape, new.shape[1:]):
            cure = "a value of that dtype and shape, or with one more axis in front"
            if _is_key(old) and not _is_key(new):
                cure = "keys, as `jax.random.wrap_key_data` makes them"
            raise ValueError(
                f"{text}, but the model has {_form(old)} there. Pass {cure}; or pass "
                "`check=False` to take all values as they are."
            )
    # A value without axes has no lanes, as what is not an array had none.
    if new.shape == (old.shape if _has_shape(old) else ()):
        return
    for around, ensemble in ensembles.items():
        below = path[len(around) + 1 :]
        is_inside = path[: len(around) + 1] == (*around, "model")
        if is_inside and all(below != mapped for mapped, _ in ensemble.mapped):
            raise ValueError(
                f"{text}, but the axes of the `Ensemble` at {place(around)} do not map "
                "that leaf, so its lanes would share the value. First make the calls "
                "that gave the leaf its lanes in the saved model, under "
                "`eqx.filter_eval_shape` if their values do not matter; or pass "
                "`check=False` to take all values as they are."
            )


def _has_shape(x: Any) -> bool:
    """Whether it is an array, or stands for one in a `like` tree."""
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def _kind(x: Any) -> int:
    """The index in `_KINDS` of an array's dtype; -1 for keys."""
    kinds = enumerate(_KINDS)
    return next((i for i, kind in kinds if jnp.issubdtype(x.dtype, kind)), -1)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _dtype(x: Any) -> Any:
    """The dtype of an array once it is a JAX array."""
    return x.dtype if _is_key(x) else jax.dtypes.canonicalize_dtype(x.dtype)


def _form(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}"
