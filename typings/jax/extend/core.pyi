# Restores, for jax 0.6.2 to 0.12, the types of jaxprs, which live in private modules
# and are named differently from version to version. It lists the names that we use.
from collections.abc import Callable, Sequence
from typing import Any

class Var:
    aval: Any

class Jaxpr:
    invars: list[Var]
    outvars: list[Var]
    eqns: list[Any]
    effects: set[Any]

class ClosedJaxpr:
    jaxpr: Jaxpr
    consts: Sequence[Any]
    def __init__(self, jaxpr: Jaxpr, consts: Sequence[Any]) -> None: ...

def jaxpr_as_fun(closed_jaxpr: ClosedJaxpr, *args: Any) -> Callable[..., list[Any]]: ...
