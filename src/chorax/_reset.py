"""Drawing the parameters of Equinox's layers afresh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast, Protocol, runtime_checkable, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu

from ._replace import replace


M = TypeVar("M")
T = TypeVar("T")


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
    are nested, the outer one's rule is called last and has the last word.

    **Arguments:**

    - `node`: a layer. Leading axes of its parameters, as layers made under
        `eqx.filter_vmap` have, are kept, each slice with draws of its own.
    - `key`: a PRNG key.

    **Returns:** the layer with new parameters, the same in shape and dtype.

    **Raises:** `TypeError` if a parameter is no array.

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
    return node


@reset_parameters.register(eqx.nn.Linear)
def _linear(node: eqx.nn.Linear, *, key: jax.Array) -> eqx.nn.Linear:
    weight = _parameter(node, "weight")
    has_bias = node.bias is not None
    if has_bias:
        _parameter(node, "bias")

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        new = eqx.nn.Linear(
            node.in_features, node.out_features, has_bias, weight.dtype, key=key
        )
        return new.weight, new.bias

    new_weight, new_bias = _per_slice(draw, key, weight.shape[:-2])
    return replace(node, weight=new_weight, bias=new_bias)


@reset_parameters.register(eqx.nn.MLP)
def _mlp(node: eqx.nn.MLP, *, key: jax.Array) -> eqx.nn.MLP:
    # The constructor splits one key over all layers, so it draws them together. Where
    # somebody has put in others, or cast them, no constructor makes such layers: each
    # of them stands alone.
    weight: Any = getattr(node.layers[0], "weight", None)
    if not eqx.is_array(weight):
        return node

    def draw(key: jax.Array) -> tuple[eqx.nn.Linear, ...]:
        new = eqx.nn.MLP(
            node.in_size,
            node.out_size,
            node.width_size,
            node.depth,
            use_bias=node.use_bias,
            use_final_bias=node.use_final_bias,
            dtype=weight.dtype,
            scan=node.scan,
            key=key,
        )
        return new.layers

    drawn = _per_slice(draw, key, weight.shape[:-2])
    return replace(node, layers=drawn) if _alike(drawn, node.layers) else node


def _alike(one: Any, other: Any) -> bool:
    leaves, structure = jtu.tree_flatten(one)
    others, other_structure = jtu.tree_flatten(other)
    return structure == other_structure and all(
        eqx.is_array(y) and (x.shape, x.dtype) == (y.shape, y.dtype)
        for x, y in zip(leaves, others, strict=True)
    )


def _per_slice(
    draw: Callable[[jax.Array], T], key: jax.Array, leading: tuple[int, ...]
) -> T:
    """Draws once for each slice along leading axes, with a key of its own."""
    keys = jax.random.split(key, leading) if leading else key
    for _ in leading:
        # Its axes are jaxtyping's `PyTree`, which means nothing to a type checker.
        draw = eqx.filter_vmap(draw)  # pyright: ignore[reportUnknownMemberType]
    return draw(keys)


def _parameter(node: Any, name: str) -> Any:
    value = getattr(node, name)
    if not eqx.is_array(value):
        kind = type(node).__name__
        raise TypeError(
            f"`{name}` of {kind} is no array, but a {type(value).__name__}, so its "
            "parameters can't be drawn as its constructor would. Register a rule, "
            "`@chorax.reset_parameters.register`, for a class of your own, or exclude "
            "the layer by `node_to_exclude`."
        )
    return value
