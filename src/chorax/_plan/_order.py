"""The order of calls: a mark on a method."""

import functools
from collections.abc import Callable
from typing import Any, cast, TypeVar

import equinox as eqx

from .._text._show import shown
from .._text._typed import typed


F = TypeVar("F", bound=Callable[..., Any])
_LEVELS = 10


@typed("level", int, "an integer, as in `@call_order(1)`")
@typed("check_order_boundary", bool, "a `bool`")
def call_order(level: int = 0, check_order_boundary: bool = True) -> Callable[[F], F]:
    """Marks a method to run after the unmarked ones, by level.

    Within one call of `vmap_call_all_fns` or `call_all_fns` all methods without a mark
    run first, then level 0, then level 1, and so on; within a level children run before
    parents. The idea is that of `brainstate.nn.call_order`.

    **Arguments:**

    - `level`: an integer in `[0, 10)`; lower levels run earlier.
    - `check_order_boundary`: `False` admits any integer.

    **Returns:**

    A decorator for methods.

    **Raises:** `TypeError` if `level` is not an integer, or if what it decorates is not
    a function; `ValueError` if `level` is out of range.

    ```python
    >>> import equinox as eqx
    >>> import chorax
    >>> class Neuron(eqx.Module):
    ...     v: float = 0.0
    ...     @chorax.call_order(1)
    ...     def init_state(self):
    ...         return chorax.replace(self, v=1.0)

    ```
    """
    if check_order_boundary and not 0 <= level < _LEVELS:
        raise ValueError(
            f"`level` must be an integer in [0, {_LEVELS}), but got {level}. Pass "
            "`check_order_boundary=False` to use any other."
        )

    def mark(function: Any) -> Any:
        # What `eqx.filter_jit` returns is frozen: mark a plain function around it.
        is_frozen = isinstance(function, eqx.Module)
        marked = _plain_function(function) if is_frozen else function
        try:
            if not callable(marked) or isinstance(marked, type | staticmethod):
                raise TypeError
            cast(Any, marked).call_order = level
        except (AttributeError, TypeError):
            # A mark would be lost on what stands between the function and its class.
            raise TypeError(
                f"`call_order` marks the function of a method, but got "
                f"{shown(function)}. Put it below other decorators, next to the `def`."
            ) from None
        return marked

    return cast("Callable[[F], F]", mark)


def _plain_function(wrapped: Any) -> Any:
    @functools.wraps(wrapped)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped(self, *args, **kwargs)

    return method


def level_of(function: Any) -> int | None:
    """The level that a function was marked with, seen through wrappers; `None` if it
    has no mark."""
    while function is not None:
        level = getattr(function, "call_order", None)
        if isinstance(level, int):
            return level
        function = getattr(function, "__wrapped__", None)
    return None
