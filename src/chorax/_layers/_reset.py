"""`reset_parameters`: drawing the parameters of a layer anew."""

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
    """A `functools.singledispatch` function that returns what it is given; Python's own
    type for it loses that."""

    @property
    def registry(self) -> Mapping[Any, Callable[..., Any]]: ...
    def __call__(self, node: M, *, key: jax.Array) -> M: ...
    def dispatch(self, cls: Any) -> Callable[..., Any]: ...
    def register(self, cls: Any, func: Any = None) -> Any: ...


def _dispatching(function: Callable[..., Any]) -> _Dispatcher:
    """A `functools.singledispatch` function that skips rules that do not hold."""
    every: Any = functools.singledispatch(function)

    def dispatch(cls: Any) -> Callable[..., Any]:
        # An atomic copy: another thread may be adding a rule.
        rules: dict[Any, Callable[..., Any]] = every.registry.copy()
        holding: Any = functools.singledispatch(rules[object])
        for kind, rule in rules.items():
            if issubclass(cls, kind) and _holds(kind, cls):
                holding.register(kind, rule)
        return holding.dispatch(cls)

    @functools.wraps(every)  # With its `register` and `registry`.
    def call(node: Any, /, *args: Any, **kwargs: Any) -> Any:
        return dispatch(type(node))(node, *args, **kwargs)

    vars(call)["dispatch"] = dispatch
    return cast(_Dispatcher, call)


def _holds(kind: type, cls: type) -> bool:
    """Whether a rule for one class holds for a subclass of it.

    Only its author knows what the subclass's own constructor draws. A class that
    constructs nothing, such as `eqx.Module` or an abstract one, has rules for all.
    """
    if kind.__module__.partition(".")[0] == cls.__module__.partition(".")[0]:
        return True
    # A class may count as a subclass of an ABC or a protocol and inherit nothing.
    alike = cls, object, eqx.Module
    return kind not in cls.__mro__ or _constructor(kind) in map(_constructor, alike)


def _constructor(cls: type) -> object:
    """Equal for an inherited `__init__`, even one that a type checker has wrapped, and
    for those that dataclasses generate from the same fields."""
    init = inspect.unwrap(cls.__init__)
    code = getattr(init, "__code__", init)
    has_more = "__post_init__" in getattr(code, "co_names", ())
    return code, has_more and getattr(cls, "__post_init__", None)


@_dispatching
def reset_parameters(node: M, *, key: jax.Array) -> M:
    """Draws a layer's parameters afresh, as its constructor would with that key.

    With `vmap_call_all_fns` it makes an ensemble of any model of Equinox's layers. It
    is a `functools.singledispatch` function: `@reset_parameters.register(MyLayer)` adds
    a rule for another class. The rule also holds for subclasses that inherit the
    class's `__init__`, and for those in the same top-level package; a rule for a class
    that constructs nothing itself, such as `eqx.Module` or an abstract class, holds for
    all subclasses.

    Modules without a rule are returned unchanged, and a collective call warns about the
    inexact arrays that they hold; a rule that returns its node says that they should
    stay. A layer inside `eqx.filter_jit` is not a module but loose leaves, and is
    returned unchanged too. If modules are nested, the outer one's rule is called last
    and decides: `MLP` and `MultiheadAttention` draw the layers that their constructors
    would make, while `WeightNorm` and `SpectralNorm` follow the layer that they wrap.

    Running statistics start anew while they are part of the layer; once
    `eqx.nn.make_with_state` has moved them into an `eqx.nn.State`, they belong to that
    state. A `PReLU` does not record its initial value, so it gets the constructor's
    default, 0.25. Values tied by `eqx.nn.Shared` stay tied. Each leaf is what the
    constructor draws in that leaf's dtype.

    **Arguments:**

    - `node`: a layer. Leading axes of its parameters, as in layers made under
        `eqx.filter_vmap`, are kept, and each slice gets its own draws.
    - `key`: a PRNG key.

    **Returns:** the layer with new parameters of the same shapes and dtypes.

    **Raises:** `TypeError` if `node` is not a module, if a parameter is not an
    inexact array, or if `key` is not a key; `ValueError` for several keys, or
    if a parameter does not have a shape that the constructor makes.

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
            "rule with `@chorax.reset_parameters.register`."
        )
    return node
