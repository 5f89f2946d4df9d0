"""Loading a state dict into a model."""

from collections.abc import Mapping
from typing import Any, cast, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from ._paths import dotted, Path, place, walk
from ._typed import typed


T = TypeVar("T")


@typed(mappings="a mapping from paths to values, as `delta.to_dict()` makes")
def assign_state_values(
    target: T, *mappings: Mapping[Any, Any]
) -> tuple[T, list[Any], list[str]]:
    """Puts values into a model by the paths of its leaves.

    The counterpart of `StateDelta.to_dict`, for values whose delta is gone; where the
    delta is at hand use `apply_delta`.

    **Arguments:**

    - `target`: any PyTree. It is left unchanged.
    - `mappings`: from dotted paths (`"layers.0.v"`), or from paths as tuples
        (`("layers", 0, "v")`), to values. Where several name a leaf, the last one wins.
        A `None` in the model is a place for a value too. Shapes are not compared, so
        that states with a lane axis fit into a model without one.

    **Returns:**

    A triple of the new model, the keys that name no leaf of it (as they were given),
    and the dotted paths of its array leaves that no key named.

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
    by_name: dict[str, list[int]] = {}
    for index, path in enumerate(places):
        by_name.setdefault(dotted(path), []).append(index)

    named: set[int] = set()
    unexpected: list[Any] = []
    for key, value in ((k, v) for mapping in mappings for k, v in mapping.items()):
        found = _find(key, by_path, by_name)
        if found is not None:
            try:
                leaves[found] = _value(value, leaves[found])
            except Exception as error:
                error.add_note(f"Raised by the value for {place(places[found])}.")
                raise
            named.add(found)
        elif key not in unexpected:
            unexpected.append(key)
    missing = [
        dotted(path)
        for index, path in enumerate(places)
        if index not in named and eqx.is_array(leaves[index])
    ]
    return jtu.tree_unflatten(structure, leaves), unexpected, missing


def _find(
    key: Any, by_path: Mapping[Path, int], by_name: Mapping[str, list[int]]
) -> int | None:
    if isinstance(key, tuple):
        return by_path.get(cast(Path, key))
    found = by_name.get(key, []) if isinstance(key, str) else []
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} leaves have the dotted path `{key}`, because a dictionary "
            "key has a dot in it: name the leaf by its path as a tuple."
        )
    return found[0] if found else None


def _value(new: Any, old: Any) -> Any:
    # A NumPy array out of a file becomes a JAX array, as does a number where an array
    # was; what never was an array stays what it is.
    return jnp.asarray(new) if eqx.is_array(new) or eqx.is_array(old) else new


def _is_none(x: Any) -> bool:
    return x is None
