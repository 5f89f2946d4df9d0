"""Values as errors show them.

In one line, however big a value is: arrays by dtype and shape, modules by their class.
A `__repr__` that raises must not hide the error.
"""

import re
import reprlib
from types import FunctionType
from typing import Any, cast

import equinox as eqx
import jax
import jax.core
import numpy as np


class _Short(reprlib.Repr):
    """A `repr` of bounded length that never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 4
        self.maxstring = self.maxlong = 60

    def repr1(self, x: Any, level: int) -> str:
        kind = cast("type[Any]", type(x))
        try:
            if isinstance(x, np.generic):
                return f"numpy.{kind.__name__}({cast(Any, x).item()!r})"
            if is_array_like(x):
                return f"{x.dtype}{list(x.shape)}"
            if isinstance(x, eqx.Module):
                return f"{kind.__name__}(...)"
            if isinstance(x, type | FunctionType) or _is_wrapped(x):
                return cast(Any, x).__name__
            if kind in (str, int, list, tuple, dict, set, frozenset):
                return super().repr1(x, level)
            if kind.__repr__ is object.__repr__:
                return f"<{kind.__name__}>"
            # Addresses say nothing.
            text = re.sub(r" at 0x\w+", "", " ".join(repr(x).split()))
        except Exception:
            return f"<{kind.__name__}>"
        return text if len(text) <= self.maxstring else f"{text[: self.maxstring]}..."


def _is_wrapped(x: Any) -> bool:
    """Whether it is a function that JAX has wrapped: `jax.nn.relu`."""
    if isinstance(x, staticmethod | classmethod) or not callable(x):
        return False
    is_wrapped = callable(getattr(x, "__wrapped__", None))
    return is_wrapped and isinstance(getattr(x, "__name__", None), str)


_short = _Short()


def is_array_like(x: Any) -> bool:
    """Whether it is an array, or a `jax.ShapeDtypeStruct` in place of one."""
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def short(x: Any) -> str:
    """A value in a few characters."""
    return _short.repr(x)


def shown(x: Any) -> str:
    """A value and its type: "3 of type int"; an array by dtype and shape."""
    kind = cast("type[Any]", type(x)).__name__
    if isinstance(x, np.generic):
        return f"{short(cast(Any, x).item())} of type numpy.{kind}"
    if is_array_like(x):
        is_traced = isinstance(x, jax.core.Tracer)
        what = "a traced array" if is_traced else named(x)
        return f"{what} of dtype {x.dtype} and shape {x.shape}"
    if x is None or isinstance(x, type | eqx.Module):
        return named(x)
    return f"{short(x)} of type {kind}"


def escaped(text: str) -> str:
    """A text with control characters escaped, which could garble a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def named(x: Any) -> str:
    """The type of a value, without the value: "an int", "`None`"."""
    if x is None:
        return "`None`"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if is_array_like(x):
        return "an array" if eqx.is_array(x) else "an abstract array"
    if type(x) is tuple:
        return f"a tuple of {len(cast('tuple[Any, ...]', x))}"
    return with_article(type(x).__name__)


def with_article(noun: str) -> str:
    """ "an int", "a float", "an MLP"."""
    # Letters of an abbreviation are spelled out: "an em el pee".
    is_spelled = re.match("[FHLMNRSX]([A-Z]|$)", noun)
    return f"{'an' if is_spelled or noun[:1] in tuple('aeioAEIO') else 'a'} {noun}"
