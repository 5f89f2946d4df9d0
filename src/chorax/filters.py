"""Filters select nodes or leaves of a tree.

Wherever chorax takes a filter, it takes any of these, and the classes below combine
with `&`, `|` and `~`:

| filter | keeps |
|---|---|
| a type, or a tuple of types | instances of it |
| a `str` | what has that tag: a written leaf of a delta, or an object's `tag` |
| a function of one argument | where `fn(x)` is true, as in `eqx.filter` |
| a function of two arguments | where `fn(path, x)` is true |
| `True` or `...` | everything |
| `False` or `None` | nothing |
| a list or tuple of filters | what any of them keeps |
"""

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
    to_filter_spec as to_filter_spec,
    to_predicate as to_predicate,
)
from ._filters._single import (
    OfType as OfType,
    PathContains as PathContains,
    WithTag as WithTag,
)


__all__ = [
    "All",
    "Any",
    "Everything",
    "Filter",
    "Not",
    "Nothing",
    "OfType",
    "PathContains",
    "Predicate",
    "WithTag",
    "to_filter_spec",
    "to_predicate",
]

# In pickles and documentation they belong to the public module.
for _public in (
    *(All, Any, Everything, Not, Nothing, OfType, PathContains, Predicate, WithTag),
    *(_Function, to_filter_spec, to_predicate),
):
    _public.__module__ = __name__


def __dir__() -> list[str]:
    return __all__
