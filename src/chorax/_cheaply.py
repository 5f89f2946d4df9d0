"""Compiling with less effort where little is computed.

Outside of a `jit` most of a first call goes into compiling programs that then run for
some microseconds. On the CPU XLA can be told to try less hard, for a fifth of the time
and to the same bits; what it makes then is up to twice as slow where much is computed.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import jax
import jax.core
import jax.extend.core as jec


# What is computed; and what is only copied, where the emitters compile equal copies
# once.
_COMPUTING: Mapping[str, Any] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}
_COPYING: Mapping[str, Any] = {"xla_backend_optimization_level": 1}
# So many elements, of all that a program computes on its way, are little.
LITTLE = 1 << 22
# So few equations are as soon compiled for each node as for all of them at once.
_FEW = 32
# Nobody knows how often a `while` goes round.
_ROUNDS = 64


class Compiled:
    """A function that is compiled as JAX does it, or cheaply."""

    def __init__(
        self, function: Callable[..., Any], *static: int, copies: bool = False
    ) -> None:
        self._function = function
        self._static = static
        self._copies = copies

    def __call__(self, cheaply: bool, *args: Any) -> Any:
        return (self._cheap if cheaply else self._plain)(*args)

    @functools.cached_property
    def _plain(self) -> Callable[..., Any]:
        return jax.jit(self._function, static_argnums=self._static)

    @functools.cached_property
    def _cheap(self) -> Callable[..., Any]:
        if not _knows_options():
            return self._plain
        options = dict(_COPYING if self._copies else _COMPUTING)
        jit: Any = jax.jit
        return jit(
            self._function, static_argnums=self._static, compiler_options=options
        )


@functools.lru_cache(maxsize=1)
def _knows_options() -> bool:
    """Whether XLA compiles for the CPU, and knows the options: others are errors."""
    if jax.default_backend() != "cpu":
        return False
    jit: Any = jax.jit
    try:
        jit(lambda: 0, compiler_options=dict(_COMPUTING)).lower().compile()
    except Exception:
        return False
    return True


def is_concrete(values: Iterable[Any]) -> bool:
    """Whether no tracer is among them: JAX takes options where none goes in."""
    return not any(isinstance(x, jax.core.Tracer) for x in values)


# What XLA compiles by a kernel or more of its own, besides what has a trace inside.
_COSTLY = re.compile(
    "random|threefry|dot|conv_|fft|sort|cum|reduce_window|gather|scatter|triangular|"
    "cholesky|lu|qr|householder|eig|svd|schur|hessenberg|tridiagonal|callback|"
    "while|scan|cond"
)


def is_simple(closed: Any) -> bool:
    """Whether a trace is element by element, a few lines of a compiled program."""
    jaxpr = getattr(closed, "jaxpr", closed)
    return len(jaxpr.eqns) <= _FEW and all(
        not _COSTLY.match(each.primitive.name)
        and all(map(is_simple, _inner(each.params.values())))
        for each in jaxpr.eqns
    )


def work_of(closed: Any) -> int:
    """How many elements a trace computes, those of matrix products for each summand."""
    jaxpr = getattr(closed, "jaxpr", closed)
    total = 0
    for each in jaxpr.eqns:
        name, params = each.primitive.name, each.params
        inner = sum(map(work_of, _inner(params.values())))
        if name == "scan":
            inner *= params["length"]
        elif name == "while":
            inner *= _ROUNDS
        own = sum(math.prod(x.aval.shape) for x in each.outvars)
        if name == "dot_general":
            (summed, _), _ = params["dimension_numbers"]
            own *= math.prod(each.invars[0].aval.shape[axis] for axis in summed)
        total += inner + own
    return total


def _inner(params: Any) -> list[Any]:
    found: list[Any] = []
    for value in params:
        if isinstance(value, jec.Jaxpr | jec.ClosedJaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _inner(cast("list[Any]", value))
    return found
