"""Notes for errors that a method raises, where the likely cure is known."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, cast

from .._text._show import short
from ._request import LANE_OPTIONS, Request


# Fields of `Request` that are not options under that name.
_OTHERS = frozenset({"fn_name", "args", "kwargs", "lanes", "bare_filters"})


def advice(
    error: Exception,
    name: str | None,
    node: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    has_lanes: bool,
) -> Iterator[str]:
    """What to say about an error that the method `name`, or a function, raised on a
    node."""
    # The `str` of a user's error might raise another one.
    text = " ".join(x for x in error.args if isinstance(x, str))
    if isinstance(error, dataclasses.FrozenInstanceError):
        yield (
            "Modules are not changed in place: return "
            "`chorax.replace(self, field=value)`."
        )
    elif _lacks_states(name, node, text):
        yield (
            "Some of its fields are `None`, and it has an `init_state`: make the "
            "states first, by `init_all_states` or `vmap_init_all_states`."
        )
    elif isinstance(error, TypeError) and "positional argument" in text:
        if has_lanes and len(args) == 1 and _is_size(args[0]):
            yield size_question(args[0])
    elif isinstance(error, TypeError) and "unexpected keyword argument" in text:
        wrong = [each for each in kwargs if f"'{each}'" in text]
        options = {field.name for field in dataclasses.fields(Request)} - _OTHERS
        names = sorted(options.union(LANE_OPTIONS))
        close = [x for each in wrong for x in difflib.get_close_matches(each, names)]
        if name is None and "key" in wrong:
            yield (
                "A rule of `reset_parameters` is called as `rule(node, key=key)`: give "
                "it the parameter `*, key`."
            )
        elif close and close[0] == wrong[0]:
            yield (
                f"`{wrong[0]}` is an option of the functions whose names begin with "
                "`vmap_`."
            )
        elif close:
            yield (
                f"`{wrong[0]}` went to the methods as a keyword argument. Did you mean "
                f"the option `{close[0]}`?"
            )


def size_question(args: Any) -> str:
    """The question where one integer was given and `axis_size` was not."""
    [size] = cast("tuple[Any]", args) if isinstance(args, tuple) else (args,)
    given = short(size)
    return f"{given} went to the methods as `args`. Did you mean `axis_size={given}`?"


def is_one_size(args: Any) -> bool:
    """Whether one integer is all that the methods get."""
    if isinstance(args, tuple):
        items = cast("tuple[Any, ...]", args)
        return len(items) == 1 and _is_size(items[0])
    return _is_size(args)


def _is_size(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _lacks_states(name: str | None, node: Any, text: str) -> bool:
    """Whether a reset seems to have failed because there are no states yet."""
    if name != "reset_state" or not hasattr(node, "init_state"):
        return False
    fields = cast("dict[str, Any]", vars(node))
    return "None" in text and any(x is None for x in fields.values())
