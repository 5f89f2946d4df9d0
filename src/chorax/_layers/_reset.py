"""Drawing the parameters of Equinox's layers afresh."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast, Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax

from .._text._show import shown


M = TypeVar("M")


@runtime_checkable
class _Dispatcher(Protocol):
    """A `functools.singledispatch` function; its own type forgets that what goes in
    comes out."""

    @property
    def registry(self) -> Mapping[Any, Callable[..., Any]]: ...
    def __call__(self, node: M, *, key: jax.Array) -> M: ...
    def dispatch(self, cls: Any) -> Callable[..., Any]: ...
    def register(self, cls: Any, func: Any = None) -> Any: ...


def _dispatching(function: Callable[..., Any]) -> _Dispatcher:
    """A `functools.singledispatch` function that goes by the rules that hold."""
    every: Any = functools.singledispatch(function)

    def dispatch(cls: Any) -> Callable[..., Any]:
        # A copy, which is made at one go: another thread may be adding a rule.
        rules: dict[Any, Callable[..., Any]] = every.registry.copy()
        holding: Any = functools.singledispatch(rules[object])
        for kind, rule in rules.items():
            if issubclass(cls, kind) and _holds(kind, cls):
                holding.register(kind, rule)
        return holding.dispatch(cls)

    @functools.wraps(every)  # Its `register` and `registry`, too.
    def call(node: Any, /, *args: Any, **kwargs: Any) -> Any:
        return dispatch(type(node))(node, *args, **kwargs)

    vars(call)["dispatch"] = dispatch
    return cast(_Dispatcher, call)


def _holds(kind: type, cls: type) -> bool:
    """Whether a rule for one class holds for another one below it.

    What a constructor of its own draws, only its author knows. A class that has nothing
    to construct, as `eqx.Module` and abstract ones, leaves that to those below it.
    """
    if kind.__module__.partition(".")[0] == cls.__module__.partition(".")[0]:
        return True
    # An ABC or a protocol may stand above a class that inherits nothing of it.
    alike = cls, object, eqx.Module
    return kind not in cls.__mro__ or _constructor(kind) in map(_constructor, alike)


def _constructor(cls: type) -> object:
    """Equal for an `__init__` that is inherited, also if a type checker has wrapped it,
    and for those that dataclasses make of the same fields."""
    init = inspect.unwrap(cls.__init__)
    code = getattr(init, "__code__", init)
    goes_on = "__post_init__" in getattr(code, "co_names", ())
    return code, goes_on and getattr(cls, "__post_init__", None)


@_dispatching
def reset_parameters(node: M, *, key: jax.Array) -> M:
    """Draws a layer's parameters afresh, as its constructor would with that key.

    With `vmap_call_all_fns` it makes an ensemble of any model of Equinox's layers. It
    is a `functools.singledispatch` function: `@reset_parameters.register(MyLayer)` adds
    a rule for another class. It holds for subclasses that inherit the class's
    `__init__`, and for those from the same top-level package; one for a class that
    constructs nothing itself, as `eqx.Module` or an abstract one, holds for all.
    Modules without a rule come back unchanged, and a collective call warns of inexact
    arrays that they hold; a rule that returns its node says that these are to stay. A
    layer that a field keeps under `eqx.filter_jit` is loose leaves there and no module,
    and comes back unchanged too. Where modules are
    nested, the outer one's rule is called last and has the last word: `MLP` and
    `MultiheadAttention` draw the layers that their constructors would make, while
    `WeightNorm` and `SpectralNorm` go by the layer that they were given.

    Running statistics start anew while they are a part of the layer; once
    `eqx.nn.make_with_state` has moved them into an `eqx.nn.State`, they are that
    state's. A `PReLU` does not know what it was made with, so it gets the constructor's
    default, 0.25. What `eqx.nn.Shared` has tied stays tied. Each leaf is what the
    constructor draws in that leaf's dtype.

    **Arguments:**

    - `node`: a layer. Leading axes of its parameters, as layers made under
        `eqx.filter_vmap` have, are kept, each slice with draws of its own.
    - `key`: a PRNG key.

    **Returns:** the layer with new parameters, the same in shape and dtype.

    **Raises:** `TypeError` if `node` is no module, a parameter no array or of integers,
    or `key` no key; `ValueError` for more than one key.

    ```python
    >>> import chorax, equinox as eqx, jax
    >>> linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> new = chorax.reset_parameters(linear, key=jax.random.key(1))
    >>> built = eqx.nn.Linear(2, 3, key=jax.random.key(1))
    >>> bool((new.weight == built.weight).all() & (new.bias == built.bias).all())
    True

    ```
    """
    del key
    if not isinstance(node, eqx.Module):
        raise TypeError(
            f"`reset_parameters` takes one layer, but got {shown(node)}. Pass a whole "
            "model to `call_all_fns(model, reset_parameters, key=key)`, or register a "
            "rule by `@chorax.reset_parameters.register`."
        )
    return node
