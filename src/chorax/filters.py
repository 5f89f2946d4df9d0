"""Filters: which nodes or leaves of a tree are meant.

Wherever chorax takes a filter, it takes any of these, and the classes below combine
with `&`, `|` and `~`:

| filter | keeps |
|---|---|
| a type, or a tuple of types | instances of it |
| a `str` | what carries that tag: a written leaf of a delta, or an object's `tag` |
| a function of one argument | where `fn(x)` is true, as in `eqx.filter` |
| a function of two arguments | where `fn(path, x)` is true |
| `True` or `...` | everything |
| `False` or `None` | nothing |
| a list or tuple of filters | what any of them keeps |
"""

from typing import TypeVar

import jax.tree_util as jtu

from ._filters._predicates import (
    All as All,
    Any as Any,
    Everything as Everything,
    Filter as Filter,
    Not as Not,
    Nothing as Nothing,
    Predicate as Predicate,
)
from ._filters._reading import (
    _Function as _Function,  # pyright: ignore[reportPrivateUsage]  # Pickles name it.
    is_pure as is_pure,
    to_predicate as to_predicate,
)
from ._filters._single import (
    OfType as OfType,
    PathContains as PathContains,
    WithTag as WithTag,
)
from ._tree._paths import walk


T = TypeVar("T")
# In pickles and documentation they belong to the public module.
for _public in (
    *(All, Any, Everything, Not, Nothing, OfType, PathContains, Predicate, WithTag),
    *(_Function, to_predicate),
):
    _public.__module__ = __name__


def to_filter_spec(tree: T, filter: Filter) -> T:
    """The leaves of a tree that a filter keeps, as a tree of `bool`.

    **Arguments:**

    - `tree`: any PyTree.
    - `filter`: any filter, see `chorax.filters`; it is asked about each leaf.

    **Returns:**

    `tree` with a `bool` for each leaf: what `eqx.partition` and `eqx.filter` take.

    **Raises:** `TypeError` for anything that is not a filter.

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> from chorax.filters import PathContains, to_filter_spec
    >>> linear = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    >>> spec = to_filter_spec(linear, PathContains("bias"))
    >>> spec.weight, spec.bias
    (False, True)

    ```
    """
    keeps = to_predicate(filter)
    kept = [keeps(path, leaf) for path, leaf, is_leaf in walk(tree) if is_leaf]
    return jtu.tree_unflatten(jtu.tree_structure(tree), kept)
