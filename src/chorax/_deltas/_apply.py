"""Putting a delta into a model, and finding the delta between two models."""

from typing import Any, TypeVar

import jax.tree_util as jtu

from .._text._places import Path
from .._text._typed import typed
from .._tree._paths import leaf_paths, same_structure
from .._tree._same import is_same
from ._delta import LeafRecord, make_delta, StateDelta
from ._show import mismatch


T = TypeVar("T")


@typed("delta", StateDelta, "a `StateDelta`, as collective calls and `diff` return")
def apply_delta(model: T, delta: "StateDelta[Any]") -> T:
    """Puts the written values of a delta into a model.

    **Arguments:**

    - `model`: a model with the structure from before or after the call that made the
        delta; its values do not matter.
    - `delta`: what `vmap_call_all_fns` and related functions return, or `diff`.

    **Returns:**

    A new model with the structure from after the call. Leaves that were not written are
    those of `model`, the same objects.

    **Raises:** `ValueError` for a model of another structure, naming the first path
    that differs; `TypeError` if `delta` is not a `StateDelta`.

    ```python
    >>> import chorax
    >>> import jax
    >>> import equinox as eqx
    >>> linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    >>> other, delta = chorax.call_all_fns(
    ...     linear, chorax.reset_parameters, key=jax.random.key(1))
    >>> bool((chorax.apply_delta(linear, delta).weight == other.weight).all())
    True

    ```
    """
    leaves, structure = jtu.tree_flatten(model)
    rows = delta.leaves()
    if same_structure(structure, delta.after):
        old = leaves
    elif same_structure(structure, delta.before):
        by_path = dict(zip(leaf_paths(structure), leaves, strict=True))
        old = [by_path.get(path) for path, _, _ in rows]
    else:
        raise ValueError(
            "This model does not have the structure that the delta was made from: "
            + mismatch(structure, delta.before, "the model", "the delta")
        )
    pairs = zip(rows, old, strict=True)
    new = [x if record.written else was for (_, x, record), was in pairs]
    return jtu.tree_unflatten(delta.after, new)


def diff(old: Any, new: T) -> "StateDelta[T]":
    """The delta from one model to another.

    **Arguments:**

    - `old`, `new`: two PyTrees. An array of `new` was written if it is not the very
        object that `old` has at the same path. Any other leaf was written if it has
        another type, is not equal, or, for numbers, has another `repr`; if it can't be
        compared, if it is another object. Markers without content, as `eqx.nn.Shared`
        makes, are equal.

    **Returns:**

    A `StateDelta` without lanes, so that `apply_delta(old, diff(old, new))` is `new`.

    ```python
    >>> import chorax
    >>> chorax.diff({"a": 1, "b": 2}, {"a": 1, "b": 3}).to_dict()
    {'b': 3}

    ```
    """
    old_leaves, before = jtu.tree_flatten(old)
    leaves, after = jtu.tree_flatten(new)
    by_path = dict(zip(leaf_paths(before), old_leaves, strict=True))

    def written(path: Path, x: Any) -> bool:
        return path not in by_path or not is_same(by_path[path], x)

    pairs = zip(leaf_paths(after), leaves, strict=True)
    rows = [(x, LeafRecord(written(path, x))) for path, x in pairs]
    return make_delta(before, after, rows, None)
