"""Checks of public functions' arguments against their types."""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, cast, TypeVar

from beartype.door import is_bearable

from ._show import shown


F = TypeVar("F", bound=Callable[..., Any])


def typed(**expected: str) -> Callable[[F], F]:
    """Checks arguments by beartype, and says in our own words what was expected.

    By hand for each function, since an import hook would be one for its user's process;
    an error of such a hook, or of jaxtyping's, would have all of the arguments in it,
    whole models among them. `expected` has the words for each parameter to check. Where
    another error is promised, the parameter is checked in the function.
    """

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(function)
        indices = {name: index for index, name in enumerate(parameters)}
        rows = [
            (indices[name], name, parameters[name].kind, hints[name], words)
            for name, words in expected.items()
        ]
        # Now, and not in a call: beartype makes a check when it is first asked, and
        # catches warnings for it, those of other threads too.
        for hint in (hints[name] for name in expected):
            is_bearable(None, hint)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for index, name, kind, hint, words in rows:
                given: Sequence[Any] = args[index : index + 1]
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    given = args[index:]
                elif name in kwargs and kind is not inspect.Parameter.POSITIONAL_ONLY:
                    given = (kwargs[name],)
                for value in given:
                    if not is_bearable(value, hint):
                        raise TypeError(
                            f"`{name}` of `{function.__name__}` must be {words}, but "
                            f"got {shown(value)}."
                        )
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate
