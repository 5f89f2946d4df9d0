"""Checks of public functions' arguments against their types."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, cast, TypeVar

import jaxtyping
from beartype import beartype


F = TypeVar("F", bound=Callable[..., Any])


def typed(function: F) -> F:
    """Checks the arguments of a function by jaxtyping and beartype.

    By hand for each function, since an import hook would be one for its user's process.
    Where another error is promised, or one of our own can say more, the parameter is
    typed `Any` and checked in the function.

    jaxtyping keeps what it has bound for as long as the function that it decorates
    runs. Ours run the methods of users, who may ask jaxtyping things of their own: so
    it decorates a function that does nothing, which is called before.
    """
    nothing: Any = lambda *args, **kwargs: None  # pyright: ignore[reportUnknownLambdaType, reportUnknownVariableType]  # noqa: E731
    plain = cast(Any, function)
    check = types.FunctionType(nothing.__code__, plain.__globals__, plain.__name__)
    check.__module__, check.__qualname__ = plain.__module__, plain.__qualname__
    signature = inspect.signature(function)
    empty = inspect.Signature.empty
    cast(Any, check).__signature__ = signature.replace(return_annotation=empty)
    checked = cast(Any, jaxtyping).jaxtyped(check, typechecker=beartype)
    # Binds no arguments to names, as jaxtyping does in each call, which takes longer
    # than many a collective call; where it finds a fault jaxtyping has the last word.
    glance: Callable[..., None] = beartype(check)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            glance(*args, **kwargs)
        except Exception:
            checked(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(F, call)
