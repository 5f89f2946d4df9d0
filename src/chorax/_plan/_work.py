"""How much a trace computes: what decides how it is compiled, and whether nodes are
stacked for it inside of a `jit`."""

import math
import re
from typing import Any, cast

import jax.extend.core as jec


# So many elements, of all that a program computes on its way, are little.
LITTLE = 1 << 24
# So few equations are as soon compiled for each node as for all of them at once.
_FEW = 32
# Nobody knows how often a `while` goes round.
_ROUNDS = 64

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
