"""Changing fields of a module without running its constructor."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx

from .._text._typed import typed


M = TypeVar("M", bound=eqx.Module)


@typed("module", eqx.Module, "an `eqx.Module`, an instance and not a class")
def replace(module: M, /, **fields: Any) -> M:
    """A copy of a module with some fields changed.

    Unlike `dataclasses.replace`, it runs no `__init__`, `__post_init__`, converter or
    `__check_init__`, so it works for modules with any constructor. Static fields, and
    fields that were never set, may be given too. For leaves deep inside a tree, see
    `equinox.tree_at`.

    **Arguments:**

    - `module`: any `eqx.Module`. It is left unchanged.
    - `fields`: new values, by field name.

    **Returns:**

    A module of the same class.

    **Raises:** `AttributeError` for a name that is not a field of the module,
    `TypeError` if `module` is not an `eqx.Module`.

    ```python
    >>> import equinox as eqx
    >>> import jax
    >>> import chorax
    >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> chorax.replace(linear, bias=None).bias is None
    True

    ```
    """
    names = [field.name for field in dataclasses.fields(module)]
    for name in fields:
        if name not in names:
            raise AttributeError(
                f"{type(module).__name__} has no field `{name}`; its fields are "
                f"{', '.join(f'`{known}`' for known in names) or '(none)'}."
            )
    copy = object.__new__(type(module))
    # Modules are frozen outside their constructor, so the attributes are set in the way
    # unflattening sets them.
    for name, value in {**vars(module), **fields}.items():
        object.__setattr__(copy, name, value)
    return copy
