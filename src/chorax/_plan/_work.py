"""How much a trace computes, which decides how it is compiled, and whether nodes are
stacked for it inside of a `jit`."""

import math
import re
from typing import Any, cast

import jax.extend.core as jec


# A program that computes at most so many elements in all counts as little work.
LITTLE = 1 << 24
# At most so many equations compile as fast for each node as for all at once.
_FEW = 32
# The number of rounds that a `while` is taken to run; nobody knows it.
_ROUNDS = 64

# What XLA compiles into one or more kernels of its own.
_COSTLY = re.compile(
    "random|threefry|dot|conv_|fft|sort|cum|reduce_window|gather|scatter|triangular|"
    "cholesky|lu|qr|householder|eig|svd|schur|hessenberg|tridiagonal|callback|"
    "while|scan|cond"
)


def is_simple(closed: Any) -> bool:
    """Whether a trace works element by element in a few equations."""
    jaxpr = getattr(closed, "jaxpr", closed)
    return len(jaxpr.eqns) <= _FEW and all(
        not _COSTLY.match(each.primitive.name)
        and all(map(is_simple, _inner(each.params.values())))
        for each in jaxpr.eqns
    )


def work_of(closed: Any) -> int:
    """How many elements a trace computes; a matrix product counts each summand."""
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
