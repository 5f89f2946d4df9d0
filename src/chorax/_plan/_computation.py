"""What a kind computes.

Kinds often compute the same: the links of a chain, each with a different number of
nodes below it, or layers that differ in a field that the method does not read. Their
traces are then equal equation by equation: one computation, which is compiled once.
"""

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any, cast

import jax
import jax.core
import jax.extend.core as jec
import numpy as np

from .._tree._memo import exact_type
from ._work import is_simple, work_of


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """A traced function of arrays; equal ones are the same object."""

    closed: jec.ClosedJaxpr

    @property
    def is_pure(self) -> bool:
        """Whether it has no effects and holds no array, which a program shared with
        others would keep alive."""
        return not self.has_effects and not self.closed.consts

    @property
    def has_effects(self) -> bool:
        """Whether it does more than return its outputs."""
        return bool(self.closed.jaxpr.effects)

    @property
    def lasts(self) -> bool:
        """Whether it holds no value of a transformation around the call."""
        consts = self.closed.consts
        return not any(isinstance(x, jax.core.Tracer) for x in consts)

    @property
    def spans_devices(self) -> bool:
        """Whether it holds an array that lives on several devices, which a program for
        one of them can't."""
        found = [x.sharding for x in self.closed.consts if _is_there(x)]
        return any(len(each.device_set) > 1 for each in found)

    def __call__(self, *inputs: Any) -> list[Any]:
        return jec.jaxpr_as_fun(self.closed)(*inputs)

    @functools.cached_property
    def work(self) -> int:
        """How much it computes."""
        return work_of(self.closed)

    @functools.cached_property
    def is_simple(self) -> bool:
        """Whether it costs less than stacking nodes for it would."""
        return is_simple(self.closed)

    @functools.cached_property
    def remember(self) -> Callable[[Callable[[Any], Any], Hashable], Any]:
        """`remember(make, key)` is `make(key)`, which is made once while this lives."""

        def call(make: Callable[[Any], Any], key: Hashable) -> Any:
            return make(key)

        return functools.lru_cache(maxsize=128)(call)


def _is_there(x: Any) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)


# Threads that trace the same thing at once get the same computation. Not a plain
# `Lock`: garbage collection may run any code while it is held.
_ONE_BY_ONE = threading.RLock()
_living = weakref.WeakValueDictionary[Hashable, Computation]()


def computation_of(closed: jec.ClosedJaxpr) -> Computation:
    """The computation of a trace: an equal one if there is one already."""
    try:
        token = _token(closed)
        with _ONE_BY_ONE:
            found = _living.get(token)
            if found is None:
                found = _living[token] = Computation(closed)
    except TypeError:
        return Computation(closed)
    _keep(found)
    return found


@functools.lru_cache(maxsize=128)
def _keep(computation: Computation) -> None:
    """Keeps the latest computations alive longer than the functions that they are
    traces of: a function may be made anew for each call, and is then not compiled
    anew."""
    del computation


def _token(closed: Any) -> Hashable:
    """What is equal for traces that compute the same; `TypeError` if nothing is.

    Traces that close over values, have effects, or have functions among the parameters
    of an equation are not compared.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    if getattr(closed, "consts", ()) or jaxpr.effects:
        raise TypeError("Not to be shared.")
    names: dict[Any, int] = {}

    def define(var: Any) -> Hashable:
        names[var] = len(names)
        return var.aval

    def read(atom: Any) -> Hashable:
        if isinstance(atom, cast(Any, jec).Literal):
            value = np.asarray(atom.val)
            return atom.aval, value.dtype, value.tobytes()
        return names[atom]

    inputs = tuple(map(define, (*jaxpr.constvars, *jaxpr.invars)))
    equations: list[Hashable] = []
    for each in jaxpr.eqns:
        if each.primitive.name.startswith("custom_"):
            raise TypeError("Not to be compared.")  # Its rules are functions.
        sources = tuple(map(read, each.invars))
        rows = tuple((name, _parameter(each.params[name])) for name in each.params)
        outputs = tuple(map(define, each.outvars))
        equations.append((each.primitive, sources, rows, outputs, _context(each.ctx)))
    return inputs, tuple(equations), tuple(map(read, jaxpr.outvars))


def _context(context: Any) -> Hashable:
    """The settings under which an equation was traced and is lowered."""
    names: tuple[str, ...] = (*cast(Any, type(context)).__slots__,)
    values = (getattr(context, name, None) for name in names if name != "__weakref__")
    return tuple(map(_parameter, values))


def _parameter(value: Any) -> Hashable:
    if isinstance(value, jec.Jaxpr | jec.ClosedJaxpr):
        return _token(value)
    kind = cast("type[Any]", type(value))
    if isinstance(value, tuple | list):
        return kind, tuple(map(_parameter, cast("tuple[Any, ...]", value)))
    if isinstance(value, Mapping):
        rows = cast("Mapping[Any, Any]", value).items()
        return kind, tuple((name, _parameter(part)) for name, part in rows)
    if isinstance(value, FunctionType):
        # Those defined at the top of a module stay; others may hold arrays.
        if value.__closure__ is not None or "<" in value.__qualname__:
            raise TypeError("Not to be compared.")
        return value
    # A mesh is callable only because it is also a decorator.
    if callable(value) and not isinstance(value, type | contextlib.ContextDecorator):
        raise TypeError("Not to be compared.")
    return exact_type(value), value
