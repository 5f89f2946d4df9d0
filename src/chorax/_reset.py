"""Drawing the parameters of Equinox's layers afresh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast, Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax

from ._show import shown


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
    return cast(_Dispatcher, functools.singledispatch(function))


@_dispatching
def reset_parameters(node: M, *, key: jax.Array) -> M:
    """Draws a layer's parameters afresh, as its constructor would with that key.

    With `vmap_call_all_fns` it makes an ensemble of any model of Equinox's layers. It
    is a `functools.singledispatch` function: `@reset_parameters.register(MyLayer)` adds
    a rule for another class. Modules without a rule come back unchanged. Where modules
    are nested, the outer one's rule is called last and has the last word: `MLP` and
    `MultiheadAttention` draw the layers that their constructors would make, while
    `WeightNorm` and `SpectralNorm` go by the layer that they were given.

    Running statistics start anew while they are a part of the layer; once
    `eqx.nn.make_with_state` has moved them into an `eqx.nn.State`, they are that
    state's. A `PReLU` does not know what it was made with, so it gets the constructor's
    default, 0.25. What `eqx.nn.Shared` has tied stays tied.

    **Arguments:**

    - `node`: a layer. Leading axes of its parameters, as layers made under
        `eqx.filter_vmap` have, are kept, each slice with draws of its own.
    - `key`: a PRNG key.

    **Returns:** the layer with new parameters, the same in shape and dtype.

    **Raises:** `TypeError` if `node` is no module, a parameter no array, or `key` no
    key; `ValueError` for more than one key.

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
