"""Type checks of the arguments of public functions."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast, TypeVar

from ._show import shown


F = TypeVar("F", bound=Callable[..., Any])


def typed(name: str, kind: Any, words: str) -> Callable[[F], F]:
    """Checks that an argument is an instance of `kind`, which `words` describe.

    It wraps the function, so it comes before the checks of a user's import hook, whose
    errors would show all arguments, whole models among them.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters
        index, how = list(parameters).index(name), parameters[name].kind

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given: Sequence[Any] = args[index : index + 1]
            if how is inspect.Parameter.VAR_POSITIONAL:
                given = args[index:]
            elif name in kwargs and how is not inspect.Parameter.POSITIONAL_ONLY:
                given = (kwargs[name],)
            for x in given:
                if not isinstance(x, kind) or (kind is int and isinstance(x, bool)):
                    raise TypeError(
                        f"`{name}` of `{function.__name__}` must be {words}, but got "
                        f"{shown(x)}."
                    )
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate
