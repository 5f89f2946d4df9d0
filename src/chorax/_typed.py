"""Checks of public functions' arguments against their types."""

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
    """
    return cast(Any, jaxtyping).jaxtyped(function, typechecker=beartype)
